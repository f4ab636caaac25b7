"""This package's version, and those of what its results depend on."""

import platform
from importlib import metadata

try:
    VERSION = metadata.version("orc-jax")
except metadata.PackageNotFoundError:  # imported from a folder, not installed
    VERSION = "unknown"


def versions() -> dict[str, str]:
    """Name → version."""
    others = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {"orc_jax": VERSION, "python": platform.python_version()} | others
