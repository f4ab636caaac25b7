"""ORC: how the pivot teacher starts, and how fast it learns beside its students."""

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
        "scratch": "orc:{networks} --config.method.pretrained=False",
        "pretrained": "orc:{networks}",
        "rate=0.3": "orc:{networks} --config.method.pivot_rate=0.3",
        "rate=0.1": "orc:{networks} --config.method.pivot_rate=0.1",
        "rate=0.01": "orc:{networks} --config.method.pivot_rate=0.01",
    },
    baseline="vanilla",
)
