"""Recipes: which networks are trained by which method and with which settings.

A config file has a dict of recipes by name. Settings that a recipe leaves out have the values of
`orc_jax.default_config`.
"""

import os
import re
import sys
from importlib.util import find_spec
from itertools import islice
from typing import NamedTuple

from orc_jax import config as configs
from orc_jax import models
from orc_jax.data import folder
from orc_jax.errors import UserError, unknown
from orc_jax.extension import is_import_name


class Recipe(NamedTuple):
    """How a group is trained.

    Attributes:
      method: name of the method.
      networks: names of the peers' networks, in peer order.
      run: settings of the run that differ from the defaults, nested as in the config.
      settings: settings of the method that differ from its defaults.
      optimizers: network → optimizer settings of the peers with this network.
    """

    method: str
    networks: tuple[str, ...]
    run: dict
    settings: dict = {}  # noqa: RUF012 - never written to
    optimizers: dict = {}  # noqa: RUF012


def build(file: str, recipes: dict[str, Recipe], preset: str):
    """Build the config of a preset, "NAME" or "NAME:NETWORK,NETWORK,…".

    NAME is one of the recipes, or "module:METHOD" for a method of the user's own, which gets the
    networks and settings of the recipe "ind".

    Args:
      file: path of the config file, for error messages.
      recipes: the recipes of the file by name.
      preset: what the user wrote after the path and a colon.

    Returns:
      The whole config.

    Raises:
      UserError: there is no such preset, method or network.
    """
    name, _, networks = preset.partition(":")
    attribute, _, networks_of_own = networks.partition(":")
    if name in recipes:
        recipe = recipes[name]
    elif is_import_name(f"{name}:{attribute}") and ("." in name or find_spec(name)):
        recipe = recipes["ind"]._replace(method=f"{name}:{attribute}")
        networks = networks_of_own
    else:
        # "NAME:…" may be meant as a method of the user's own.
        own = f"module:METHOD (there is no module {name!r})" if attribute else "module:METHOD"
        raise unknown(f"preset of {file}", name, [*recipes, own])
    names = networks.split(",") if networks else recipe.networks
    if not all(names):
        raise UserError(f"{file}:{preset} has an empty network name")
    names = [models.canonical(network) for network in names]
    config = configs.default_config(recipe.method)
    config.update(recipe.run)
    config.method.update(recipe.settings)
    config.peers = tuple(configs.peer(network) for network in names)
    for peer in config.peers:
        peer.optimizer.update(recipe.optimizers.get(peer.model, {}))
    return config


def few_images(most: int) -> int:
    """Count the training images of the folder that the command line names.

    Args:
      most: the number of images that are still few.

    Returns:
      The number, or 0 if there are more, or no such folder.
    """
    # A value may stand behind its key, or be an argument of its own.
    arguments = "\n".join(sys.argv[1:])
    found = dict(re.findall(r"^--?config\.data\.(dir|name)[=\n](.*)$", arguments, re.MULTILINE))
    directory = os.path.expanduser(found.get("dir", ""))
    if not directory or found.get("name", "folder") != "folder":
        return 0
    try:
        # Not to list ImageNet twice.
        if sum(1 for _ in islice(folder.images_below(directory), 20 * most)) == 20 * most:
            return 0
        listing = folder.find(directory, on_error="skip")
    except UserError:
        return 0  # the error is raised when the run begins
    count = len(listing.train.labels)
    if listing.test is None:
        count -= round(configs.default_config().data.test_share * count)  # they are held out
    return count if count <= most else 0


# The settings of OKDDip (AAAI 2020, arXiv 1912.00350) for all rows of its tables.
OKDDIP = {"epochs": 300, "optimizer": {"decay_epochs": (150, 225)}}

# The settings of DCM (ECCV 2020, arXiv 2008.07816), as in its authors' program, which makes a new
# optimizer wherever the learning rate drops.
DCM = {
    "epochs": 200,
    "data": {"pad_mode": "reflect"},
    "optimizer": {
        "nesterov": False,
        "decay": 0.2,
        "decay_epochs": (59, 119, 159),
        "reset_at_decay": True,
    },
}


def baselines(data: dict) -> dict[str, Recipe]:
    """Return the recipes of OKDDip's and DCM's comparisons, which several data sets share.

    Args:
      data: settings of the data set, as in `config.data`.
    """

    def recipe(method, networks, run, **settings):
        return Recipe(method, networks, run | {"data": data | run.get("data", {})}, settings)

    four = ("resnet32",) * 4
    return {
        "ind": recipe("ind", four, OKDDIP),
        "kd": recipe("kd", ("resnet110", "resnet32"), OKDDIP),
        "dml": recipe("dml", four, OKDDIP),
        "kdcl": recipe("kdcl", four, OKDDIP),
        "one": recipe("one", four, OKDDIP),
        "cl_ilr": recipe("cl_ilr", four, OKDDIP),
        "okddip": recipe("okddip", four, OKDDIP),
        "okddip_net": recipe("okddip", four, OKDDIP, form="network"),
        "dcm": recipe("dcm", ("wrn_28_10",) * 2, DCM),
    }
