"""ORC, table 6: every teacher teaches by itself, or all of them as one ensemble."""

from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="orc",
    variants={
        "vanilla": "ind:{networks}",
        "individual": "orc:{networks}",
        "ensemble": "orc:{networks} --config.method.teaching=ensemble",
    },
    baseline="vanilla",
)
