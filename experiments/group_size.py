"""The size of a group of equals, P = 2 to 8, by DML and by ORC without a pivot."""

from experiments.study import Study

SIZES = range(2, 9)


def group(size):
    """Return the networks of a group of this many students."""
    return ",".join(["{student}"] * size)


STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="orc_peers",
    variants={"vanilla": "ind:{student}"}
    | {f"DML-{size}": f"dml:{group(size)}" for size in SIZES}
    | {f"ORC-peers-{size}": f"orc_peers:{group(size)}" for size in SIZES},
    baseline="vanilla",
)
