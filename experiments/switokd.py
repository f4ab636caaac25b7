"""SwitOKD's comparison: a teacher and a student, both from scratch (but for KD's teacher)."""

from experiments.study import Study

STUDY = Study(
    bases=(
        "configs/digits.py",
        "configs/cifar10.py",
        "configs/cifar100.py",
        "configs/tiny_imagenet.py",
        "configs/tiny_imagenet.py:switokd_small",
    ),
    preset="switokd",
    variants={
        "vanilla": "ind:{networks}",
        "KD": "kd:{networks}",
        "DML": "dml:{networks}",
        "KDCL": "kdcl:{networks}",
        "SwitOKD": "switokd:{networks}",
    },
    baseline="vanilla",
    published={
        "cifar10 switokd_wrn_16_8,switokd_wrn_16_1": {"SwitOKD": 92.50},
        "cifar100 switokd_wrn_16_2,MobileNetV2": {"SwitOKD": 67.24},
        "tiny_imagenet switokd_resnet34,mobilenet_v2_x1.4": {"vanilla": 50.98, "SwitOKD": 58.71},
        "tiny_imagenet switokd_wrn_16_2_tiny,switokd_resnet20": {"SwitOKD": 55.03},
    },
    not_public="SwitOKD's public programs leave out WRN-16-2 with ResNet-20 on Tiny-ImageNet, and "
    "the other methods of its tables.",
)
