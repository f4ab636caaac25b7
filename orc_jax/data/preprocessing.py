"""The form of the images that a network expects."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from orc_jax.errors import UserError


class Preprocessing(NamedTuple):
    """Shape, resizing and normalisation, (pixel/255 − mean) / std, of a network's images.

    Attributes:
      image_shape: (height, width, channels).
      resize: pixels to which the shorter side of an image file is scaled before the centre is
        taken; 0 for the size in `image_shape`.
      mean: mean of pixel/255, per channel.
      std: standard deviation of pixel/255, per channel.
      bits: bits that the levels of 16-bit image files have.
    """

    image_shape: tuple[int, int, int]
    resize: int
    mean: Float[np.ndarray, " channels"]
    std: Float[np.ndarray, " channels"]
    bits: int = 16

    def to_json(self) -> dict:
        """Return the fields as they are written to `run.json`, `network.json` and `export.json`."""
        return {
            "image_shape": list(self.image_shape),
            "resize": self.resize,
            "bits": self.bits,
            **self.scale(),
        }

    def scale(self) -> dict:
        """Return the mean and the standard deviation as `to_json` does."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def from_json(about: dict) -> Preprocessing:
    """Read a `Preprocessing` from the fields that `to_json` has returned.

    Args:
      about: the fields, which may be among other keys.

    Raises:
      UserError: a field is missing, or cannot be what it says.
    """
    for key in ("image_shape", "resize", "mean", "std"):
        if key not in about:
            raise UserError(f"there is no {key!r}")
    shape = image_shape(about)
    channels = shape[2]
    for key, least in (("mean", -math.inf), ("std", 0)):
        values = about[key]
        is_list = isinstance(values, list) and len(values) == channels
        if not is_list or not all(_is_finite(value) and value > least for value in values):
            above = "" if key == "mean" else " above 0"
            raise UserError(f"{key} is {values}, allowed: {channels} finite numbers{above}")
    resize, bits = about["resize"], about.get("bits", 16)
    for key, value in (("resize", resize), ("bits", bits)):
        if not isinstance(value, int) or value < 0:
            raise UserError(f"{key} is {value}, allowed: whole numbers from 0")
    mean, std = (np.array(about[key], np.float32) for key in ("mean", "std"))
    return Preprocessing(shape, resize, mean, std, bits)


def image_shape(about: dict) -> tuple[int, int, int]:
    """Read the shape of the images, (height, width, channels), from the fields of a network.

    Args:
      about: the fields, with "image_shape" among them.

    Raises:
      UserError: it cannot be a shape.
    """
    shape = about["image_shape"]
    is_shape = isinstance(shape, list) and len(shape) == 3
    if not is_shape or not all(isinstance(side, int) and side > 0 for side in shape):
        raise UserError(f"image_shape is {shape}, allowed: [height, width, channels]")
    return shape[0], shape[1], shape[2]


def class_names(about: dict) -> list[str]:
    """Read the names of the classes from the fields of a network or an export.

    Args:
      about: the fields, with "class_names" among them.

    Raises:
      UserError: they are missing, or cannot be names.
    """
    names = about.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"class_names is {names}, allowed: the names of the classes")
    return names


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
