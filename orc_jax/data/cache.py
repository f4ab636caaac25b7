"""A cache of arrays in a folder."""

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orc_jax.errors import UserError


def cached(folder: Path | None, key: str, make: Callable[[], dict]) -> dict[str, np.ndarray]:
    """Read the arrays of a key from the cache; make and keep them if they are missing or damaged.

    Args:
      folder: folder of the cache; None to make the arrays without keeping them.
      key: hash of everything that the arrays are made of.
      make: function that returns the arrays, by name.

    Raises:
      UserError: the folder cannot be written to.
    """
    if folder is None:
        return make()
    file = folder / f"{key[:32]}.npz"
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass
    _keep(file, {})  # whether it can be kept is found out before it takes long to make
    arrays = make()
    _keep(file, arrays)
    return arrays


def _keep(file, arrays):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
            new = Path(temporary) / file.name
            np.savez(new, **arrays)
            if arrays:
                new.replace(file)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {file.parent}: {error.strerror}; "
            "--config.data.cache=DIR uses another folder"
        ) from error
