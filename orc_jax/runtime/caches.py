"""What is made once and kept in the user's cache folder: decoded images, compiled programs."""

import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from orc_jax.errors import UserError


def directory() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"


def keep_programs() -> None:
    """Keeps compiled programs for the next start, where JAX_COMPILATION_CACHE_DIR says no other."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(directory() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cached(data, key: str, make: Callable[[], dict]) -> dict[str, np.ndarray]:
    """The arrays of this key, made and kept if they are not there yet, or damaged.

    Args:
      data: `config.data`, whose `cache` can name another folder.
      key: a hash of all that they are made of.
      make: gives them.
    """
    file = Path(data.cache or directory()) / f"{key[:32]}.npz"
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            new = Path(folder) / file.name
            np.savez(new, **arrays)
            new.replace(file)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {file.parent}: {error.strerror}; "
            "--config.data.cache=DIR takes another folder"
        ) from error
    return arrays
