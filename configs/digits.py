"""Handwritten digits, 8×8: every method trains on a laptop CPU in a minute or two, no download.

`configs/digits.py:NAME` selects a recipe, and `NAME:NETWORK,NETWORK,…` other networks. NAME is one
of ind, kd, takd, dgkd, dml, kdcl, one, cl_ilr, okddip, okddip_net, dcm, switokd, switokd_2t1s,
switokd_1t2s, orc (default: a pivot and three students), orc_peers (four equals).
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

# All methods have the same settings, so that they alone differ.
DIGITS = {
    "epochs": 30,
    "batch_size": 64,
    "eval_batch_size": 360,
    "data": {"name": "digits", "pad": 1, "flip": False},
    "optimizer": {"schedule": "cosine"},
    "pretrain": {"epochs": 10},
}
# ONE, CL-ILR and OKDDip ramp up their teaching over 80 of 300 epochs, which is 8 of 30 here.
RAMP = {"ramp_epochs": 8}
FOUR = ("resnet8",) * 4
CHAIN = ("resnet20", "resnet14", "resnet8")

RECIPES = {
    "ind": Recipe("ind", FOUR, DIGITS),
    "kd": Recipe("kd", ("resnet14", "resnet8"), DIGITS),
    "takd": Recipe("takd", CHAIN, DIGITS),
    "dgkd": Recipe("dgkd", CHAIN, DIGITS),
    "dml": Recipe("dml", FOUR, DIGITS),
    "kdcl": Recipe("kdcl", FOUR, DIGITS),
    "one": Recipe("one", FOUR, DIGITS, RAMP),
    "cl_ilr": Recipe("cl_ilr", FOUR, DIGITS, RAMP),
    "okddip": Recipe("okddip", FOUR, DIGITS, RAMP),
    "okddip_net": Recipe("okddip", FOUR, DIGITS, RAMP | {"form": "network"}),
    "dcm": Recipe("dcm", FOUR[:2], DIGITS),
    "switokd": Recipe("switokd", ("resnet14", "resnet8"), DIGITS),
    "switokd_2t1s": Recipe("switokd", ("resnet14", "resnet14", "resnet8"), DIGITS, {"teachers": 2}),
    "switokd_1t2s": Recipe("switokd", ("resnet14", "resnet8", "resnet8"), DIGITS),
    "orc": Recipe("orc", ("resnet14", *FOUR[1:]), DIGITS),
    "orc_peers": Recipe("orc", FOUR, DIGITS, {"pivot": None}),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/digits.py", RECIPES, preset)
