"""ORC, table 5: which of intensive, private and group teaching are on.

With none of them every network learns alone.
"""

from itertools import product

from experiments.study import Study

TEACHINGS = ("intensive", "private", "group")


def variants():
    """Every choice of teachings, by what is on."""
    for on in product((False, True), repeat=3):
        name = "+".join(name for name, is_on in zip(TEACHINGS, on, strict=True) if is_on)
        switches = zip(TEACHINGS, on, strict=True)
        overrides = [f"--config.method.{name}={is_on}" for name, is_on in switches]
        yield name or "none", " ".join(["orc:{networks}", *overrides])


STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py", "configs/imagenet.py"),
    preset="orc",
    variants=dict(variants()),
    baseline="none",
    published={
        # 100 − the top-1 error of the paper: 30.25 and 28.00.
        "imagenet resnet34,resnet18,resnet18": {"none": 69.75, "intensive+private+group": 72.00}
    },
)
