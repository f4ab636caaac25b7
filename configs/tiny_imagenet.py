"""Tiny-ImageNet, 64×64: `data/tiny-imagenet-200` as in its archive.

`configs/tiny_imagenet.py:NAME` selects a recipe, and `NAME:NETWORK,NETWORK,…` other networks. NAME
is one of ind, kd, dml, kdcl, one, cl_ilr, okddip, okddip_net, dcm, switokd (ResNet-34 and
MobileNetV2 of width 1.4), switokd_small (WRN-16-2 and ResNet-20), orc (default), orc_peers.
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

DATA = {"name": "tiny_imagenet", "dir": "data/tiny-imagenet-200", "size": 64}
# The settings of SwitOKD's authors.
SWITOKD = {
    "epochs": 199,
    "data": DATA,
    "optimizer": {"learning_rate": 0.01, "nesterov": False, "decay_epochs": (99, 139, 179)},
}
# Our choice, the settings for CIFAR-100, because no results are published.
ORC = {"epochs": 240, "data": DATA, "optimizer": {"decay_epochs": (150, 180, 210)}}

RECIPES = {
    **recipes.baselines(DATA),
    "orc": Recipe("orc", ("resnet56", "resnet44", "resnet32", "resnet20"), ORC),
    "orc_peers": Recipe("orc", ("resnet32",) * 4, ORC, {"pivot": None}),
    "switokd": Recipe("switokd", ("switokd_resnet34", "mobilenet_v2_x1.4"), SWITOKD),
    "switokd_small": Recipe("switokd", ("switokd_wrn_16_2_tiny", "switokd_resnet20"), SWITOKD),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/tiny_imagenet.py", RECIPES, preset)
