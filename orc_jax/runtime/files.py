"""Text files that a kill or a full disk never leaves half written."""

import json
import os
from pathlib import Path
from typing import Any

from orc_jax.errors import UserError


def write(path: Path, text: str) -> None:
    """Write a file as a whole: afterwards it has the new text, or still the old one.

    Args:
      path: the file.
      text: its new content.
    """
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append(path: Path, text: str) -> None:
    """Append to a file, and wait until the text is on the disk.

    Args:
      path: the file.
      text: whole lines.
    """
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def to_json(value: Any) -> str:
    """Return the text of a JSON file.

    Raises:
      ValueError: a number is NaN or infinite, which JSON does not know.
    """
    return json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"


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
