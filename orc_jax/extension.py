"""Import of the user's own methods, networks and data sets by name: "package.module:NAME"."""

import re
from importlib import import_module
from typing import Any

from orc_jax.errors import UserError, unknown


def is_import_name(name: str) -> bool:
    """Return whether a name has the form "package.module:NAME"."""
    return bool(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name))


def import_name(kind: str, name: str) -> Any:
    """Import an object by its name, "package.module:NAME".

    Args:
      kind: what the object is, for the error ("method").
      name: module and attribute.

    Returns:
      The object.

    Raises:
      UserError: there is no such module, it cannot be imported, or it has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        # The user's own module can raise anything.
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
            reason += "; PYTHONPATH can name the folder that it is in"
        raise UserError(f"the {kind} {name!r} cannot be imported ({reason})") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise unknown(f"name in {module_name}", attribute, public or ["(nothing)"])
    return getattr(module, attribute)
