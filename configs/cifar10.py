"""CIFAR-10, 32×32.

`configs/cifar10.py:NAME` selects a recipe, and `NAME:NETWORK,NETWORK,…` other networks. NAME is one
of ind, kd, takd, dgkd, dml, kdcl, one, cl_ilr, okddip, okddip_net, dcm, switokd, switokd_2t1s,
switokd_1t2s, orc (default), orc_peers.
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

# Our choice, because the public material of the ORC paper gives the networks alone.
ORC = {
    "epochs": 200,
    "data": {"name": "cifar10"},
    "optimizer": {"decay_epochs": (100, 150)},
}
# The settings of SwitOKD's authors, for two networks. Their programs count epochs from 1.
SWITOKD = {
    "epochs": 299,
    "data": {"name": "cifar10"},
    "optimizer": {"nesterov": False, "decay_epochs": (99, 149, 199)},
}
# A teacher, two assistants and the target student.
CHAIN = ("resnet26", "resnet20", "resnet14", "resnet8")

RECIPES = {
    **recipes.baselines({"name": "cifar10"}),
    # The networks of the ORC paper; its pivot teacher comes first.
    "orc": Recipe("orc", CHAIN, ORC),
    "takd": Recipe("takd", CHAIN, ORC),
    "dgkd": Recipe("dgkd", CHAIN, ORC),
    "orc_peers": Recipe("orc", ("resnet20",) * 4, ORC, {"pivot": None}),
    "switokd": Recipe("switokd", ("switokd_wrn_16_8", "switokd_wrn_16_1"), SWITOKD),
    # Our choice, because three networks are published on CIFAR-100 alone.
    "switokd_2t1s": Recipe(
        "switokd",
        ("switokd_wrn_16_8", "switokd_wrn_16_2", "switokd_wrn_16_1"),
        SWITOKD,
        {"teachers": 2},
    ),
    "switokd_1t2s": Recipe(
        "switokd", ("switokd_wrn_16_8", "switokd_wrn_16_2", "switokd_wrn_16_1"), SWITOKD
    ),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/cifar10.py", RECIPES, preset)
