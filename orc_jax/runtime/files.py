"""Text files that a kill or a full disk never leaves half written."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orc_jax.errors import UserError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)


def write(path: Path, text: str) -> None:
    """Write a file as a whole: afterwards it has the new text, or still the old one.

    What a link names is written, and a device such as /dev/stdout as it is.

    Args:
      path: the file.
      text: its new content.

    Raises:
      UserError: it cannot be written.
    """
    with unwritable(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            return _write(path, "w", text)
        temporary = target.with_name(f".{target.name}.new")
        try:
            _write(temporary, "w", text)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Append to a file, and wait until the text is on the disk.

    Args:
      path: the file.
      text: whole lines.

    Raises:
      UserError: it cannot be written.
    """
    with unwritable(path):
        _write(path, "a", text)


def _write(path, mode, text):
    with path.open(mode, encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
        file.flush()
        if path.is_file():
            os.fsync(file.fileno())


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk and the like, while a file is written, into a `UserError`.

    Args:
      path: what is written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else _disk_error(error)
        if not reason:
            raise
        raise UserError(f"{path} cannot be written: {reason}") from error


@contextmanager
def unprintable() -> Iterator[None]:
    """Turn the errors of a full disk, while standard output is written, into a `UserError`.

    So it does with those of a file that has no better message.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            name = os.fsdecode(error.filename) if error.filename != -1 else "a file"
            raise UserError(f"{name} cannot be used: {error.strerror}") from error
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(f"standard output cannot be written: {error.strerror}") from error


def _disk_error(error: BaseException | None) -> str:
    """Return what the operating system says is wrong, or "" if it is not the cause of an error."""
    while error is not None:
        # TensorStore, which Orbax writes with, has no exceptions of its own.
        for number in DISK_ERRORS:
            if os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


def to_json(value: Any) -> str:
    """Return the text of a JSON file.

    Raises:
      ValueError: a number is NaN or infinite, which JSON does not know.
    """
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, what: str) -> dict:
    """Read a JSON file that holds an object.

    Args:
      path: the file.
      what: what it should be, for the error: "a saved network".

    Raises:
      UserError: it cannot be read, or holds something else.
    """

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not {what}: it holds {type(value).__name__}, not an object")
    return value
