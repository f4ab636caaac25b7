"""Your own images: `--config.data.dir=DIR`, with `train/CLASS/…` and `val/CLASS/…` in it.

`--config.data.size=64` scales them to 64×64. `configs/folder.py:NAME` selects a recipe, and
`NAME:NETWORK,NETWORK,…` other networks. NAME is one of ind, kd, dml, kdcl, one, cl_ilr, okddip,
okddip_net, dcm, switokd, orc, orc_peers, and for few images small, small_ind and small_orc.

The default is small for at most 2,000 training images, and orc for more. In small, a ResNet-20
learns first and then teaches two ResNet-8 by plain distillation; small_orc is the same with ORC,
and small_ind one network alone. They have 64×64 pixels, and a batch size and a number of epochs
that suit the number of images.
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
FEW = 2000


def small(num_images: int) -> dict[str, Recipe]:
    """Return the recipes for a folder of at most `FEW` images, in which each is seen often."""
    run = {
        "batch_size": 16 if num_images < 200 else 32 if num_images < 1000 else 64,
        "epochs": min(100, max(20, 20_000 // num_images)),
        "eval_every": 5,
        "checkpoint_every": 5,
        "data": DATA | {"size": 64, "pad": 8, "jitter": 0.2},
        "optimizer": {"schedule": "cosine", "learning_rate": 0.05, "warmup_epochs": 2.0},
    }
    return {
        "small": Recipe("kd", ("resnet20", "resnet8", "resnet8"), run),
        "small_ind": Recipe("ind", ("resnet8",), run),
        "small_orc": Recipe("orc", ("resnet20", "resnet8", "resnet8"), run),
    }


def get_config(preset: str = ""):
    """Return the config of a preset, see `recipes.build`."""
    count = recipes.few_images(FEW)
    if not preset and count:
        print(f"{count:,} training images are few: configs/folder.py:small is the recipe")
    preset = preset or ("small" if count else "orc")
    return recipes.build("configs/folder.py", RECIPES | small(count or 500), preset)
