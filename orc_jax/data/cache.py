"""A cache of arrays in a folder."""

import os
import platform
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from orc_jax.errors import UserError

LIMIT = 50 * 2**30  # bytes of all arrays
NEW = "orc_jax-new-"  # prefix of what is being written
# Beside these there may be other things of the user in the folder.
_LEFTOVER = re.compile(re.escape(NEW) + r"(.+)-(\d+)-[^-]+")  # host, process
_ARRAYS = re.compile(r"[0-9a-f]{32}\.npz")
DAY = 24 * 3600  # seconds


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
            found = dict(arrays)
        with suppress(OSError):
            os.utime(file)  # it was used now
        return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass
    with suppress(OSError):
        _remove_leftovers(folder)
    _keep(file, {})  # whether it can be kept is found out before it takes long to make
    arrays = make()
    _keep(file, arrays)
    return arrays


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes have left that were killed while they wrote."""
    for path in folder.glob(f"{NEW}*"):
        if not (found := _LEFTOVER.fullmatch(path.name)):
            continue
        # Of a process on another machine nobody knows here whether it lives.
        is_here, is_old = found[1] == platform.node(), time.time() - path.stat().st_mtime > DAY
        if _has_ended(int(found[2])) if is_here else is_old:
            shutil.rmtree(path, ignore_errors=True)


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _forget_old(newest: Path) -> None:
    """Remove the arrays that were not used for longest, beyond the limit of the cache."""
    others = [path for path in newest.parent.iterdir() if _ARRAYS.fullmatch(path.name)]
    files = [(path, path.stat()) for path in others if path != newest]
    total = newest.stat().st_size + sum(status.st_size for _, status in files)
    for path, status in sorted(files, key=lambda entry: entry[1].st_mtime):
        if total <= LIMIT:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size


def _keep(file, arrays):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{NEW}{platform.node()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=prefix) as temporary:
            new = Path(temporary) / file.name
            np.savez(new, **arrays)
            if arrays:
                new.replace(file)
                with suppress(FileNotFoundError):  # another process forgets them, too
                    _forget_old(file)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {file.parent}: {error.strerror}; "
            "--config.data.cache=DIR uses another folder"
        ) from error
