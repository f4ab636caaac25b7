"""ORC, table 8: a group of equals, by ORC without a pivot and by the other methods."""

from experiments.study import Study

STUDY = Study(
    bases=(
        "configs/digits.py",
        "configs/fashion_mnist.py",
        "configs/cifar10.py",
        "configs/cifar100.py",
    ),
    preset="orc_peers",
    variants={
        "vanilla": "ind:{networks}",
        "TAKD": "takd:{networks}",
        "DGKD": "dgkd:{networks}",
        "DML": "dml:{networks}",
        "KDCL": "kdcl:{networks}",
        "ONE": "one:{networks}",
        "CL-ILR": "cl_ilr:{networks}",
        "OKDDip": "okddip:{networks}",
        "OKDDip-net": "okddip_net:{networks}",
        "ORC": "orc_peers:{networks}",
    },
    baseline="vanilla",
)
