"""The likeliest classes of image files."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from orc_jax.data import decode, faults, folder
from orc_jax.errors import UserError
from orc_jax.trained.model import Model

BEST = 5


def predict(
    model: Model, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """The likeliest classes of image files; those that cannot be decoded are reported on
    standard error and passed over.

    Args:
      model: of `model.load`.
      paths: of images.
      batch_size: how many go through the network at once.

    Yields:
      An image's path, and (class, probability) from the likeliest on.

    Raises:
      UserError: the network does not take images from files.
    """
    shape = model.images.image_shape
    if not decode.come_from_files(shape):
        height, width, channels = shape
        raise UserError(
            f"images of {height}×{width} pixels and {channels} channels do not come from files: "
            "use orc_jax.load(…).predict(images)"
        )
    # Always as many rows, so that one program does for all.
    rows = np.zeros((min(batch_size, len(paths)), *shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), len(rows)):
            batch = paths[first : first + len(rows)]
            decoded = pool.map(partial(_decoded, model), batch)
            found = [(path, image) for path, image in zip(batch, decoded, strict=True)]
            found = [(path, image) for path, image in found if image is not None]
            for row, (_, image) in zip(rows, found, strict=False):
                row[:] = image
            for (path, _), probabilities in zip(found, model.predict(rows), strict=False):
                best = np.argsort(-probabilities, kind="stable")[:BEST]
                yield path, [(model.class_names[i], float(probabilities[i])) for i in best]


def _decoded(model, path):
    size, _, channels = model.images.image_shape
    try:
        return decode.decode(path, size, model.images.resize, channels)
    except faults.FAULTS as error:
        try:
            why = faults.reason(path, error)
        except UserError as unreadable:
            why = str(unreadable)
        print(f"passed over {path}: {why}", file=sys.stderr, flush=True)


def images_of(arguments: Sequence[str]) -> list[str]:
    """Image files, and those in folders and below.

    Raises:
      UserError: there is no such file, or no image in a folder.
    """
    paths = []
    for path in arguments:
        if os.path.isdir(path):
            below = list(folder.images_below(path))
            if not below:
                raise UserError(f"{path} has no image ({', '.join(folder.SUFFIXES)})")
            paths += below
        elif os.path.exists(path):
            paths.append(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    return paths
