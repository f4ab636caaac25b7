"""OKDDip's comparison: four students, and a larger teacher for KD.

DML has the settings of OKDDip's code. Other networks of the paper:
--base=configs/cifar100.py:kd:TEACHER,STUDENT.
"""

from experiments.study import Study

FOUR = "{student},{student},{student},{student}"
OKDDIPS_DML = "--config.method.temperature=3 --config.method.constant_target=False"

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="kd",
    variants={
        "vanilla": f"ind:{FOUR}",
        "KD": "kd:{teacher},{student}",
        "DML": f"dml:{FOUR} {OKDDIPS_DML}",
        "CL-ILR": f"cl_ilr:{FOUR}",
        "ONE": f"one:{FOUR}",
        "OKDDip": f"okddip:{FOUR}",
        "OKDDip-net": f"okddip_net:{FOUR}",
    },
    baseline="vanilla",
)
