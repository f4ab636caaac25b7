"""CIFAR-100, 32×32.

`configs/cifar100.py:NAME` selects a recipe, and `NAME:NETWORK,NETWORK,…` other networks. NAME is
one of ind, kd, takd, dgkd, dml, kdcl, one, cl_ilr, okddip, okddip_net, dcm, switokd, switokd_2t1s,
switokd_1t2s, orc (default), orc_peers.
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

# The settings of the usual benchmark of knowledge distillation.
ORC = {
    "epochs": 240,
    "data": {"name": "cifar100"},
    "optimizer": {"decay_epochs": (150, 180, 210)},
}
# The settings of SwitOKD's authors, for two networks and for three, with Adam for MobileNet.
SWITOKD = {
    "epochs": 299,
    "data": {"name": "cifar100"},
    "optimizer": {"nesterov": False, "decay_epochs": (139, 199, 249)},
}
SWITOKD_3 = SWITOKD | {"epochs": 269}
THREE = ("switokd_wrn_16_10", "switokd_wrn_16_2", "switokd_mobilenet")
ADAM = {"switokd_mobilenet": {"name": "adam", "learning_rate": 0.01, "weight_decay": 1e-4}}
# A teacher, two assistants and the target student.
CHAIN = ("resnet56", "resnet44", "resnet32", "resnet20")

RECIPES = {
    **recipes.baselines({"name": "cifar100"}),
    "orc": Recipe("orc", CHAIN, ORC),
    "takd": Recipe("takd", CHAIN, ORC),
    "dgkd": Recipe("dgkd", CHAIN, ORC),
    "orc_peers": Recipe("orc", ("resnet32",) * 4, ORC, {"pivot": None}),
    "switokd": Recipe(
        "switokd",
        ("switokd_wrn_16_2", "MobileNetV2"),
        SWITOKD,
        optimizers={"MobileNetV2": {"learning_rate": 0.01}},
    ),
    "switokd_2t1s": Recipe("switokd", THREE, SWITOKD_3, {"teachers": 2}, ADAM),
    "switokd_1t2s": Recipe("switokd", THREE, SWITOKD_3, optimizers=ADAM),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/cifar100.py", RECIPES, preset)
