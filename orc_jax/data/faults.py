"""Damaged images: how they are detected, reported and kept in the cache."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from orc_jax.errors import UserError

# Exceptions that Pillow raises for a file that is truncated or not an image.
FAULTS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, MemoryError),
    Image.DecompressionBombError,
)


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that images may have: all of Pillow's but EPS, a language of programs.

    Pillow would have them run by Ghostscript, whatever the name of the file.
    """
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def open_image(file: str | Path | io.BytesIO) -> Image.Image:
    """Open an image, which is decoded when it is used.

    Args:
      file: the encoded image.

    Raises:
      Exception: one of `FAULTS`, if it cannot be opened.
    """
    return Image.open(file, formats=_formats())


def fault(file: Path | io.BytesIO) -> str:
    """Check an image for damage, without decoding it where its format allows that.

    Args:
      file: the encoded image.

    Returns:
      What is wrong with the image, or "".

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with open_image(file) as image:
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG":
                image.load()
            elif b"\xff\xd9" not in _end(file):
                image.load()  # much data may follow the end marker, so its absence proves nothing
    except FAULTS as error:
        return reason(str(file), error)
    return ""


def _end(file, size=1024):
    """Return the last bytes of a file."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[-size:]
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read()


def reason(name: str, error: Exception) -> str:
    """Describe in short what is wrong with an image.

    Args:
      name: name of the image.
      error: exception, one of `FAULTS`, that decoding the image raised.

    Raises:
      UserError: the disk failed. This is not a fault of the image and must not be cached as one.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise unreadable(name, error) from error
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return " ".join(str(error).replace(repr(name), "it").split())


def unreadable(path: str | Path, error: OSError) -> UserError:
    """Return the error for a file that cannot be read, for the caller to raise.

    Args:
      path: path of the file.
      error: exception that reading it raised.
    """
    return UserError(f"{path} cannot be read: {error.strerror}")


def to_arrays(bad: dict[int, str]) -> dict[str, np.ndarray]:
    """Convert index → reason for damaged images to arrays, which `cache.cached` can keep.

    Args:
      bad: index of an image → what is wrong with it.
    """
    return {"bad": np.array(list(bad), int), "why": np.array(list(bad.values()), str)}


def from_arrays(arrays: dict[str, np.ndarray]) -> dict[int, str]:
    """Return the `bad` that `to_arrays` has converted to these arrays.

    Args:
      arrays: result of `to_arrays`, which may be among other arrays.
    """
    return dict(zip(arrays["bad"].tolist(), arrays["why"].tolist(), strict=True))
