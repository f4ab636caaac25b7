"""ORC, table 5: which of intensive, private and group teaching are on.

With none of them, every network learns alone.
"""

from itertools import product

from experiments.study import Study

TEACHINGS = ("intensive", "private", "group")


def variants():
    """Yield (name, variant) for every combination of teachings."""
    for switches in product((False, True), repeat=len(TEACHINGS)):
        is_on = dict(zip(TEACHINGS, switches, strict=True))
        name = "+".join(teaching for teaching in TEACHINGS if is_on[teaching])
        overrides = [f"--config.method.{teaching}={is_on[teaching]}" for teaching in TEACHINGS]
        yield name or "none", " ".join(["orc:{networks}", *overrides])


STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py", "configs/imagenet.py"),
    preset="orc",
    variants=dict(variants()),
    baseline="none",
    published={
        # 100 − the top-1 errors in the paper, 30.25 and 28.00.
        "imagenet resnet34,resnet18,resnet18": {"none": 69.75, "intensive+private+group": 72.00}
    },
    not_public="Of ORC's settings on ImageNet, the public material names the networks alone: the "
    "assistant, temperature, β, α of mixup, learning rates and the training of the pivot are ours.",
)
