"""ORC: a temporary teacher teaches with its weights after or before its private teaching.

The second form saves passes: one backward and two forward passes of a student in every step.
"""

from experiments.study import Study

STUDY = Study(
    bases=(
        "configs/digits.py",
        "configs/fashion_mnist.py",
        "configs/cifar10.py",
        "configs/cifar100.py",
    ),
    preset="orc",
    variants={
        "vanilla": "ind:{networks}",
        "after_private": "orc:{networks}",
        "before_private": "orc:{networks} --config.method.temporary_teaches=before_private",
    },
    baseline="vanilla",
)
