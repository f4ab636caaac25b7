"""Fashion-MNIST, 28×28, grey: 60,000 training and 10,000 test images of clothes.

On Debian, `apt-get install dataset-fashion-mnist` brings the files, which are found without a
setting; elsewhere put the four .gz files into `data/`. `configs/fashion_mnist.py:NAME` selects a
recipe, and `NAME:NETWORK,NETWORK,…` other networks. NAME is one of ind, kd, takd, dgkd, dml, kdcl,
one, cl_ilr, okddip, okddip_net, dcm, switokd, switokd_2t1s, switokd_1t2s, orc (default: a pivot and
three students), orc_peers (four equals).

On 2 CPU cores (AMD EPYC) the whole set takes orc about four hours and ind:resnet8 25 minutes,
reckoned from 210 and 1,680 images a second; --config.data.train_images=2000 takes 8 and 2 minutes.
"""

from orc_jax import recipes
from orc_jax.recipes import Recipe

# All methods have the same settings, so that they alone differ. They are our choice.
FASHION = {
    "epochs": 40,
    "data": {"name": "fashion_mnist", "pad": 2},
    "optimizer": {"schedule": "cosine"},
    "pretrain": {"epochs": 20},
}
# ONE, CL-ILR and OKDDip ramp up their teaching over 80 of 300 epochs, which is 11 of 40 here.
RAMP = {"ramp_epochs": 11}
FOUR = ("resnet8",) * 4
CHAIN = ("resnet26", "resnet20", "resnet14", "resnet8")

RECIPES = {
    "ind": Recipe("ind", FOUR, FASHION),
    "kd": Recipe("kd", ("resnet20", "resnet8"), FASHION),
    "takd": Recipe("takd", CHAIN, FASHION),
    "dgkd": Recipe("dgkd", CHAIN, FASHION),
    "dml": Recipe("dml", FOUR, FASHION),
    "kdcl": Recipe("kdcl", FOUR, FASHION),
    "one": Recipe("one", FOUR, FASHION, RAMP),
    "cl_ilr": Recipe("cl_ilr", FOUR, FASHION, RAMP),
    "okddip": Recipe("okddip", FOUR, FASHION, RAMP),
    "okddip_net": Recipe("okddip", FOUR, FASHION, RAMP | {"form": "network"}),
    "dcm": Recipe("dcm", FOUR[:2], FASHION),
    "switokd": Recipe("switokd", ("resnet20", "resnet8"), FASHION),
    "switokd_2t1s": Recipe(
        "switokd", ("resnet20", "resnet14", "resnet8"), FASHION, {"teachers": 2}
    ),
    "switokd_1t2s": Recipe("switokd", ("resnet20", "resnet14", "resnet8"), FASHION),
    "orc": Recipe("orc", ("resnet20", *FOUR[1:]), FASHION),
    "orc_peers": Recipe("orc", FOUR, FASHION, {"pivot": None}),
}


def get_config(preset: str = "orc"):
    """Return the config of a preset, see `recipes.build`."""
    return recipes.build("configs/fashion_mnist.py", RECIPES, preset)
