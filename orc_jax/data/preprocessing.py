"""The form of the images that a network expects."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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
    """
    mean, std = (np.array(about[key], np.float32) for key in ("mean", "std"))
    shape, bits = tuple(about["image_shape"]), about.get("bits", 16)
    return Preprocessing(shape, about["resize"], mean, std, bits)
