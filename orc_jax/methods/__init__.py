"""The methods by name: one file each, one registry. `method.py` says what a method is."""

from importlib import import_module

from ml_collections import ConfigDict

from orc_jax.errors import UserError, unknown
from orc_jax.extension import import_name, is_import_name
from orc_jax.methods import divergence
from orc_jax.methods.method import Method

# Each name is that of its file.
NAMES = (
    "ind",
    "kd",
    "takd",
    "dgkd",
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

# Settings that several methods of ours have, and the least value of each.
_AT_LEAST = {"alpha": 0, "weight": 0, "ramp_epochs": 0}


def register(name: str, method: Method) -> None:
    """Add a method of your own, for this process, under a name that configs can use.

    A config that other commands (evaluate, export, report) read names it as
    "package.module:METHOD" instead, which they import by themselves.

    Raises:
      UserError: the name is taken, or this is no `Method`.
    """
    if METHODS.get(name, method) is not method:
        raise UserError(f"there is a method {name!r} already: choose another name")
    METHODS[name] = _checked(name, method)


def get(name: str) -> Method:
    """Return the method of this name, or the one at "package.module:NAME".

    Raises:
      UserError: there is none.
    """
    if is_import_name(name):
        return _checked(name, import_name("method", name))
    if name not in METHODS:
        raise unknown("method", name, [*METHODS, "package.module:NAME"])
    return METHODS[name]


def _checked(name, method) -> Method:
    if not isinstance(method, Method):
        raise UserError(
            f"the method {name!r} is of type {type(method).__name__}, expected "
            "orc_jax.methods.method.Method"
        )
    return method


def defaults(name: str) -> ConfigDict:
    """Return `config.method` of this method, with the defaults of its settings."""
    config = get(name).defaults()
    config.name = name
    return config


def check(config, networks: list[str]) -> None:
    """Raise `UserError` where a method's settings make no sense.

    Args:
      config: `config.method`.
      networks: name of every peer's network.
    """
    if config.name in NAMES:
        if not config.get("temperature", 1.0) > 0:
            raise UserError(f"method.temperature is {config.temperature}, allowed: above 0")
        for key, least in _AT_LEAST.items():
            if not config.get(key, least) >= least:
                raise UserError(f"method.{key} is {config[key]}, allowed: {least} or more")
        if "divergence" in config:
            divergence.check(config)
    get(config.name).check(config, networks)
