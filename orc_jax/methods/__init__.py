"""The methods by name: one file each, one registry. What a method is: `method.py`."""

from importlib import import_module

from ml_collections import ConfigDict

from orc_jax.errors import UserError, unknown
from orc_jax.methods.method import Method

# Each name is that of its file.
NAMES = (
    "ind",
    "kd",
    "dml",
    "kdcl",
    "one",
    "cl_ilr",
    "okddip",
    "dcm",
    "switokd",
    "orc",
)
METHODS = {name: import_module(f"orc_jax.methods.{name}").METHOD for name in NAMES}

# Settings that several methods have, and the least value of each.
_AT_LEAST = {"alpha": 0, "weight": 0, "ramp_epochs": 0}


def get(name: str) -> Method:
    """The method of this name; `UserError` if there is none."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def defaults(name: str) -> ConfigDict:
    """`config.method` of this method, with the defaults of its settings."""
    config = get(name).defaults()
    config.name = name
    return config


def check(config, networks: list[str]) -> None:
    """Raises `UserError` where a method's settings make no sense.

    Args:
      config: `config.method`.
      networks: name of every peer's network.
    """
    if not config.get("temperature", 1.0) > 0:
        raise UserError(f"method.temperature is {config.temperature}, allowed: above 0")
    for key, least in _AT_LEAST.items():
        if not config.get(key, least) >= least:
            raise UserError(f"method.{key} is {config[key]}, allowed: {least} or more")
    get(config.name).check(config, networks)
