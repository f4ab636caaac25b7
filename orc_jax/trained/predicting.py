"""The most probable classes of image files."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from orc_jax.data import decode, faults, folder
from orc_jax.errors import UserError
from orc_jax.trained.model import Model

BEST = 5  # classes

# The path of an image, and (class, probability) of its most probable classes, in that order.
Prediction = tuple[str, list[tuple[str, float]]]


def predict(model: Model, paths: Sequence[str], batch_size: int) -> Iterator[Prediction]:
    """Find the most probable classes of image files.

    Files that cannot be decoded are reported on standard error and skipped.

    Args:
      model: see `model.load`.
      paths: image files.
      batch_size: number of images that go through the network at once.

    Yields:
      The path of an image, and (class, probability) of its five most probable classes, the most
      probable first.

    Raises:
      UserError: the network's images do not come from files.
    """
    shape = model.images.image_shape
    if not decode.come_from_files(shape):
        height, width, channels = shape
        raise UserError(
            f"images of {height}×{width} pixels and {channels} channels do not come from files: "
            "use orc_jax.load(…).predict(images)"
        )
    # All batches have the same size, so that one compilation is enough.
    rows = np.zeros((min(batch_size, len(paths)), *shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), len(rows)):
            batch = paths[first : first + len(rows)]
            images = pool.map(partial(_decoded, model), batch)
            decoded = [
                (path, image)
                for path, image in zip(batch, images, strict=True)
                if image is not None
            ]
            for row, (_, image) in zip(rows, decoded, strict=False):
                row[:] = image
            for (path, _), probabilities in zip(decoded, model.predict(rows), strict=False):
                best = np.argsort(-probabilities, kind="stable")[:BEST]
                yield path, [(model.class_names[i], float(probabilities[i])) for i in best]


def _decoded(model, path):
    """Decode an image, or report why that fails and return None."""
    images = model.images
    size, _, channels = images.image_shape
    try:
        return decode.decode(path, size, images.resize, channels, images.bits)
    except faults.FAULTS as error:
        try:
            reason = faults.reason(path, error)
        except UserError as unreadable:
            reason = str(unreadable)
        print(f"passed over {folder.printable(path)}: {reason}", file=sys.stderr, flush=True)
        return None


def images_of(arguments: Sequence[str]) -> list[str]:
    """List image files, with those below folders.

    Args:
      arguments: paths of image files and folders.

    Raises:
      UserError: a path does not exist, or there is no image below a folder.
    """
    paths = []
    for path in arguments:
        if os.path.isdir(path):
            images = list(folder.images_below(path))
            if not images:
                raise UserError(f"{path} has no image file")
            paths += images
        elif os.path.isfile(path):
            paths.append(path)
        elif os.path.exists(path):
            raise UserError(f"{path} is neither a file nor a folder")
        else:
            raise UserError(f"there is no file or folder {path}")
    return paths
