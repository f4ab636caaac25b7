"""Encoded images that are damaged: how this is found out, said and kept."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from orc_jax.errors import UserError

# What PIL raises for a file that is truncated or no image.
FAULTS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, MemoryError),
    Image.DecompressionBombError,
)


def fault(file: Path | io.BytesIO) -> str:
    """Why this is not a whole image, without decoding it where its format allows that."""
    try:
        with Image.open(file) as image:
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG":
                image.load()
            elif b"\xff\xd9" not in _end(file):
                image.load()  # an end marker may have much behind it
    except FAULTS as error:
        return reason(str(file), error)
    return ""


def _end(file, size=1024):
    if isinstance(file, io.BytesIO):
        return file.getvalue()[-size:]
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read()


def reason(name: str, error: Exception) -> str:
    """What is wrong with an image, in short.

    Args:
      name: of the image.
      error: one of `FAULTS`, which decoding it raised.

    Raises:
      UserError: it is the disk; that is no fault of the image, and is not to be kept.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise unreadable(name, error) from error
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    return " ".join(str(error).replace(repr(name), "it").split())


def unreadable(path: str | Path, error: OSError) -> UserError:
    """The error for a file that the disk does not give, for the caller to raise."""
    return UserError(f"{path} cannot be read: {error.strerror}")


def to_arrays(bad: dict[int, str]) -> dict[str, np.ndarray]:
    """Index → what is wrong with that image, as arrays that `cache.cached` keeps."""
    return {"bad": np.array(list(bad), int), "why": np.array(list(bad.values()), str)}


def from_arrays(arrays: dict[str, np.ndarray]) -> dict[int, str]:
    """What `to_arrays` was given."""
    return dict(zip(arrays["bad"].tolist(), arrays["why"].tolist(), strict=True))
