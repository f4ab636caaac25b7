"""Load a trained network to classify images: from an export, a saved network or a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import numpy as np
from jaxtyping import Float

from orc_jax import compiler
from orc_jax.data import preprocessing
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.runtime import files
from orc_jax.trained.networks import from_run, from_saved, logits


class Model(NamedTuple):
    """A trained network, compiled.

    Attributes:
      class_names: [C], in the order of the outputs.
      images: preprocessing of the images, with their shape.
      logits: uint8 [B, *images.image_shape] → float32 [B, C].
    """

    class_names: list[str]
    images: Preprocessing
    logits: Callable

    def predict(self, images, batch_size: int = 256) -> Float[np.ndarray, "B C"]:
        """Compute the probabilities of the classes.

        Args:
          images: uint8 [B, H, W, channels], or [B, H, W] if there is one channel.
          batch_size: number of images that go through the network at once.

        Raises:
          UserError: the images have another type or shape.
        """
        images, shape = np.asarray(images), self.images.image_shape
        if images.ndim == 3 and shape[2] == 1:
            images = images[..., None]
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise UserError(
                f"images must be uint8 {['B', *shape]}, B at least 1, "
                f"not {images.dtype} {list(images.shape)}"
            )
        # All batches have the same size, so that one compilation is enough.
        rows = np.zeros((min(batch_size, len(images)), *shape), np.uint8)
        probabilities = []
        for first in range(0, len(images), len(rows)):
            part = images[first : first + len(rows)]
            rows[: len(part)] = part
            probabilities.append(np.asarray(jax.nn.softmax(self.logits(rows)))[: len(part)])
        return np.concatenate(probabilities)


def load(directory: str | Path) -> Model:
    """Load an export, a saved network, or the best peer in the last checkpoint of a run.

    Args:
      directory: of the export or saved network, or work directory of the run.

    Raises:
      UserError: the directory is none of these, is damaged, or does not say how images are
        normalised.
    """
    directory = Path(directory)
    if (directory / "export.json").is_file():
        return _exported(directory)
    if (directory / "network.json").is_file():
        trained = from_saved(directory)
    elif (directory / "config.json").is_file():
        trained = from_run(directory)
    else:
        raise UserError(
            f"{directory} is no export, no saved network and no run: it has no export.json, "
            "network.json or config.json"
        )
    run = partial(compiler.jit(partial(logits, trained)), jax.device_put(trained.variables))
    return Model(trained.class_names, trained.images[0], run)


def read_stablehlo(program: bytes) -> jax.export.Exported:
    """Read a program that `formats.stablehlo` made.

    Returns:
      The program, whose `call` computes uint8 [B, H, W, channels] → logits [B, C].

    Raises:
      UserError: the program is damaged, or the package that reads it is missing.
    """
    try:
        return jax.export.deserialize(bytearray(program))
    except ImportError as error:
        raise UserError("StableHLO is read with flatbuffers: pip install flatbuffers") from error
    except Exception as error:
        # JAX and flatbuffers raise many exceptions here, which mean the same to the user.
        raise UserError("this is not a program that jax.export wrote, or it is cut off") from error


def _exported(directory):
    path = directory / "export.json"
    about = files.read_json(path, "the export.json of an export")
    try:
        names = preprocessing.class_names(about)
        images = preprocessing.from_json(_dict(about.get("images")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    program = directory / "model.stablehlo"
    try:
        exported = read_stablehlo(program.read_bytes())
    except (OSError, UserError) as error:
        raise UserError(f"{program} cannot be read: {error}") from error
    shapes = exported.in_avals[0].shape[1:], exported.out_avals[0].shape[1:]
    if shapes != (images.image_shape, (len(names),)):
        raise UserError(
            f"{path} is not of {program.name}: it says images {list(images.image_shape)} and "
            f"{len(names)} classes, the program {list(shapes[0])} and {shapes[1][-1]}"
        )
    return Model(names, images, compiler.jit(exported.call))


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}
