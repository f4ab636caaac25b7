"""Arrays that are made once and kept, by the content that they were made of."""

import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orc_jax.errors import UserError


def directory(data) -> Path:
    """Where they are: `data.cache`, else the user's cache folder."""
    if data.cache:
        return Path(data.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"


def cached(data, key: str, make: Callable[[], dict]) -> dict[str, np.ndarray]:
    """The arrays of this key, made and kept if they are not there yet, or damaged.

    Args:
      data: `config.data`.
      key: a hash of all that they are made of.
      make: gives them.
    """
    file = directory(data) / f"{key[:32]}.npz"
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
