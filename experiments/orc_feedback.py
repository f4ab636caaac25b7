"""ORC, table 9: what the teacher studies before it teaches."""

from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="orc",
    variants={
        "vanilla": "ind:{networks}",
        "mixup": "orc:{networks}",
        "feedback_only": "orc:{networks} --config.method.feedback=feedback_only",
        "train_only": "orc:{networks} --config.method.feedback=train_only",
    },
    baseline="vanilla",
)
