"""Your own images: `--config.data.dir=DIR`, with `train/CLASS/…` and `val/CLASS/…` in it.

`--config.data.size=64` scales them to 64×64. `configs/folder.py:NAME` selects a recipe, and
`NAME:NETWORK,NETWORK,…` other networks. NAME is one of ind, kd, dml, kdcl, one, cl_ilr, okddip,
okddip_net, dcm, switokd, orc (default), orc_peers.
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

DATA = {"name": "folder"}
# Our choice, the settings for CIFAR-100.
ORC = {"epochs": 240, "data": DATA, "optimizer": {"decay_epochs": (150, 180, 210)}}

RECIPES = {
    **recipes.baselines(DATA),
    "orc": Recipe("orc", ("resnet56", "resnet44", "resnet32", "resnet20"), ORC),
    "orc_peers": Recipe("orc", ("resnet32",) * 4, ORC, {"pivot": None}),
    "switokd": Recipe("switokd", ("wrn_16_2", "resnet20"), ORC),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/folder.py", RECIPES, preset)
