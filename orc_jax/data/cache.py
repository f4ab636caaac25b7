"""Arrays that are made once and kept in a folder."""

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orc_jax.errors import UserError


def cached(folder: Path | None, key: str, make: Callable[[], dict]) -> dict[str, np.ndarray]:
    """The arrays of this key, made and kept if they are not there yet, or damaged.

    Args:
      folder: where they are kept; None: nowhere.
      key: a hash of all that they are made of.
      make: gives them.

    Raises:
      UserError: the folder cannot be written to.
    """
    if folder is None:
        return make()
    file = folder / f"{key[:32]}.npz"
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            new = Path(temporary) / file.name
            np.savez(new, **arrays)
            new.replace(file)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {folder}: {error.strerror}; "
            "--config.data.cache=DIR takes another folder"
        ) from error
    return arrays
