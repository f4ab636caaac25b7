"""Methods, networks and data sets of the user's own, by name: "package.module:NAME"."""

import re
from importlib import import_module
from typing import Any

from orc_jax.errors import UserError, unknown


def is_import_name(name: str) -> bool:
    """Return whether a name says where to import something from, as in "package.module:NAME"."""
    return bool(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name))


def import_name(kind: str, name: str) -> Any:
    """Import what "package.module:NAME" names.

    Args:
      kind: what it is, for the error ("method").
      name: module and attribute.

    Raises:
      UserError: there is no such module, it cannot be imported, or it has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        # A module of the user's own can raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the {kind} {name!r} cannot be imported ({reason})") from error
    if not hasattr(module, attribute):
        public = [found for found in vars(module) if not found.startswith("_")]
        raise unknown(f"name in {module_name}", attribute, public or ["(nothing)"])
    return getattr(module, attribute)
