"""SwitOKD's comparison of three networks: two teachers and a student, or one and two."""

from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="switokd_2t1s",
    variants={
        "vanilla": "ind:{networks}",
        "DML": "dml:{networks}",
        "KDCL": "kdcl:{networks}",
        "2T1S": "switokd_2t1s:{networks}",
        "1T2S": "switokd_1t2s:{networks}",
    },
    baseline="vanilla",
    published={
        "cifar100 switokd_wrn_16_10,switokd_wrn_16_2,switokd_mobilenet": {
            "2T1S": 65.03,
            "1T2S": 64.62,
        },
    },
)
