"""All methods against each other, for one student network.

The base is a chain: a teacher, assistants for TAKD and DGKD, and the student. Groups have four
students. ORC's pivot, which is a teacher, takes the place of one. As published, groups of SwitOKD
have two or three networks and those of DCM two.
"""

from experiments.study import Study

FOUR = "{student},{student},{student},{student}"

STUDY = Study(
    bases=(
        "configs/digits.py",
        "configs/fashion_mnist.py",
        "configs/cifar10.py",
        "configs/cifar100.py",
    ),
    preset="takd",
    variants={
        "vanilla": f"ind:{FOUR}",
        "KD": "kd:{teacher},{student}",
        "TAKD": "takd:{networks}",
        "DGKD": "dgkd:{networks}",
        "DML": f"dml:{FOUR}",
        "KDCL": f"kdcl:{FOUR}",
        "ONE": f"one:{FOUR}",
        "CL-ILR": f"cl_ilr:{FOUR}",
        "OKDDip": f"okddip:{FOUR}",
        "OKDDip-net": f"okddip_net:{FOUR}",
        "DCM": "dcm:{student},{student}",
        "SwitOKD": "switokd:{teacher},{student}",
        "SwitOKD-2T1S": "switokd_2t1s:{teacher},{teacher},{student}",
        "SwitOKD-1T2S": "switokd_1t2s:{teacher},{student},{student}",
        "ORC": "orc:{teacher},{student},{student},{student}",
        "ORC-peers": f"orc_peers:{FOUR}",
    },
    baseline="vanilla",
    seeds=10,
)
