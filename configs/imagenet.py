"""ImageNet, 224×224: `data/ImageNet` with `train/CLASS/…` and `val/CLASS/…`, streamed.

`configs/imagenet.py:NAME` selects a recipe, and `NAME:NETWORK,NETWORK,…` other networks. NAME is
one of ind, kd, dml, switokd (ResNet-34 and ResNet-18), orc (default: the pivot ResNet-34 and two
ResNet-18), orc_peers.
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

DATA = {
    "name": "imagenet",
    "dir": "data/ImageNet",
    "size": 224,
    "resized_crop": True,
    "eval_resize": 256,
    "pad": 0,
    "workers": 16,
}
# The usual settings for 100 epochs, by which the published ResNet-18 and ResNet-34 were trained.
USUAL = {
    "epochs": 100,
    "batch_size": 256,
    "data": DATA,
    "optimizer": {"nesterov": False, "weight_decay": 1e-4, "decay_epochs": (30, 60, 90)},
}
# The settings of SwitOKD's authors.
SWITOKD = USUAL | {"epochs": 120, "batch_size": 512}

RECIPES = {
    "ind": Recipe("ind", ("resnet18",), USUAL),
    "kd": Recipe("kd", ("resnet34", "resnet18"), USUAL),
    "dml": Recipe("dml", ("resnet34", "resnet18"), USUAL),
    "switokd": Recipe("switokd", ("resnet34", "resnet18"), SWITOKD),
    "orc": Recipe("orc", ("resnet34", "resnet18", "resnet18"), USUAL),
    "orc_peers": Recipe("orc", ("resnet18",) * 4, USUAL, {"pivot": None}),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/imagenet.py", RECIPES, preset)
