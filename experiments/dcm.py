"""DCM's comparison: two networks, each with auxiliary heads while it trains.

The paper's pair of different networks is --base=configs/cifar100.py:dcm:wrn_28_10,mobilenet.
"""

from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar100.py"),
    preset="dcm",
    variants={
        "vanilla": "ind:{networks}",
        "DML": "dml:{networks}",
        "KDCL": "kdcl:{networks}",
        "DCM": "dcm:{networks}",
    },
    baseline="vanilla",
    published={
        # 100 − the top-1 error in the paper; for two equal networks the mean of both.
        "cifar100 wrn_28_10,wrn_28_10": {"vanilla": 81.28, "DML": 82.08, "DCM": 83.37},
        "cifar100 wrn_28_10,mobilenet": {"vanilla": 73.70, "DML": 76.09, "DCM": 78.57},
    },
    not_public="The published accuracies are means of five runs. Which settings DML had in them is "
    "not known here.",
)
