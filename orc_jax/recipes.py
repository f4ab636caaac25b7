"""Recipes: which networks train by which method with which settings.

A config file holds a table of them by name. What a recipe does not set is `default_config`'s.
"""

from importlib.util import find_spec
from typing import NamedTuple

from orc_jax import config as configs
from orc_jax import models
from orc_jax.errors import UserError, unknown
from orc_jax.extension import is_import_name


class Recipe(NamedTuple):
    """How a group is trained.

    Attributes:
      method: its name.
      networks: of the peers, in order.
      run: settings of the run, nested as in the config.
      settings: of the method, where they are not its defaults.
      optimizers: network → optimizer settings of its own.
    """

    method: str
    networks: tuple[str, ...]
    run: dict
    settings: dict = {}  # noqa: RUF012 - never written to
    optimizers: dict = {}  # noqa: RUF012


def build(file: str, recipes: dict[str, Recipe], preset: str):
    """Build the config of a preset: "NAME", or "NAME:NETWORK,NETWORK,…" for other networks.

    NAME is one of the recipes, or "module:METHOD" for a method of your own.

    Args:
      file: the config file, for error messages.
      recipes: its presets by name.
      preset: what the user wrote after the file's name.

    Raises:
      UserError: there is no such preset.
    """
    name, _, networks = preset.partition(":")
    attribute, _, others = networks.partition(":")
    if name in recipes:
        recipe = recipes[name]
    elif is_import_name(f"{name}:{attribute}") and ("." in name or find_spec(name)):
        # A method from outside: the networks and settings of independent training.
        recipe, networks = recipes["ind"]._replace(method=f"{name}:{attribute}"), others
    else:
        raise unknown(f"preset of {file}", name, recipes)
    given = networks.split(",") if networks else recipe.networks
    if not all(given):
        raise UserError(f"{file}:{preset} has an empty network name")
    peers = tuple(map(models.canonical, given))
    config = configs.default_config(recipe.method)
    config.update(recipe.run)
    config.method.update(recipe.settings)
    config.peers = tuple(configs.peer(network) for network in peers)
    for peer in config.peers:
        peer.optimizer.update(recipe.optimizers.get(peer.model, {}))
    return config


# OKDDip's program (AAAI 2020), for every row of its tables.
OKDDIP = {"epochs": 300, "optimizer": {"decay_epochs": (150, 225)}}

# The DCM authors' program (ECCV 2020).
DCM = {
    "epochs": 200,
    "data": {"pad_mode": "reflect"},
    "optimizer": {"nesterov": False, "decay": 0.2, "decay_epochs": (60, 120, 160)},
}


def baselines(data: dict) -> dict[str, Recipe]:
    """OKDDip's and DCM's recipes, which data sets share; `data` are their settings of it."""

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
