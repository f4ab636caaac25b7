"""What images must be like for a network."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Preprocessing(NamedTuple):
    """What a network's images are like: (pixel/255 − mean) / std of images of one shape.

    Attributes:
      image_shape: (height, width, channels).
      resize: pixels to which the shorter side of a file's image is scaled before its centre is
        taken; 0: to the images' size.
      mean, std: of pixel/255, per channel.
    """

    image_shape: tuple[int, int, int]
    resize: int
    mean: Float[np.ndarray, " channels"]
    std: Float[np.ndarray, " channels"]

    def to_json(self) -> dict:
        """As `run.json`, `network.json` and `export.json` have it."""
        return {
            "image_shape": list(self.image_shape),
            "resize": self.resize,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }


def from_json(about: dict) -> Preprocessing:
    """What `to_json` gave, which may stand among other keys; mean and deviation as float32."""
    scale = (np.array(about[key], np.float32) for key in ("mean", "std"))
    return Preprocessing(tuple(about["image_shape"]), about["resize"], *scale)
