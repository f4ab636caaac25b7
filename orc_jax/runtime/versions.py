"""The version of this package, and of the packages that its results depend on."""

import platform
from importlib import metadata

try:
    VERSION = metadata.version("orc-jax")
except metadata.PackageNotFoundError:  # imported from a folder, not installed
    VERSION = "unknown"


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, JAX, Flax and NumPy, by name."""
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {"orc_jax": VERSION, "python": platform.python_version()} | packages
