"""ORC, table 7: who becomes a temporary teacher."""

from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="orc",
    variants={
        "vanilla": "ind:{networks}",
        "rank": "orc:{networks}",
        "fixed": "orc:{networks} --config.method.promotion=fixed",
        "random": "orc:{networks} --config.method.promotion=random",
    },
    baseline="vanilla",
)
