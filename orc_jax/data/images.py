"""Images in memory, data sets of a train and a test split, and parts of a split."""

import zlib
from typing import Any, NamedTuple

import numpy as np

from orc_jax.errors import UserError


class Images(NamedTuple):
    """images: [N, H, W, channels] uint8; labels: [N] int32 class indices."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def select(self, rows: np.ndarray) -> "Images":
        """Those where the mask holds."""
        return Images(self.images[rows], self.labels[rows])

    def checksums(self) -> dict[str, list]:
        """Name → what tells it from another split: shape and CRC-32 of each array."""
        return {
            name: [list(array.shape), zlib.crc32(np.ascontiguousarray(array))]
            for name, array in self._asdict().items()
        }


class Dataset(NamedTuple):
    """A train and a test split of one set of classes.

    Attributes:
      train: `Images`, or encoded ones (`folder.Files`, `tfds.Records`); None where only the test
        images are wanted.
      test: of the same kind.
      class_names: in the order of their indices.
    """

    train: Any
    test: Any
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.test.image_shape

    @property
    def streamed(self) -> bool:
        """Whether images are decoded while they are used, because not all fit the memory."""
        return not isinstance(self.test, Images)


def hold_out(train, share: float, seed: int) -> tuple:
    """Splits a share of every class off the training images or files, at random.

    Returns:
      What is left to train on, and what was split off (None for a share of 0).
    """
    if not share:
        return train, None
    rng = np.random.default_rng(seed)
    aside = np.zeros(len(train.labels), bool)
    for label in np.unique(train.labels):
        members = rng.permutation(np.flatnonzero(train.labels == label))
        aside[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return train.select(~aside), train.select(aside)


def subsample(train, count: int, seed: int):
    """So many of the training images or files, at random; every class keeps its share of them.

    Args:
      train: a split.
      count: how many; 0: all.
      seed: which ones.

    Raises:
      UserError: there are not so many.
    """
    total = len(train.labels)
    if count > total:
        raise UserError(
            f"data.train_images is {count}, allowed: at most the {total} that there are"
        )
    if not count:
        return train
    # An image's place in its class, from 0 to 1: the lowest ones are of all classes alike.
    order = np.random.default_rng(seed).permutation(total)
    place = np.empty(total)
    for label in np.unique(train.labels):
        members = order[train.labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = np.zeros(total, bool)
    chosen[order[np.argsort(place[order], kind="stable")[:count]]] = True
    return train.select(chosen)


def from_arrays(train, test) -> Dataset:
    """A data set of the caller's own arrays.

    Args:
      train: (images, labels); images uint8 [N, H, W] or [N, H, W, channels], labels
        integers [N] from 0.
      test: the same, for evaluation.

    Raises:
      UserError: the arrays do not have this form.
    """
    train, test = _images("train", *train), _images("test", *test)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"train images are {train.images.shape[1:]}, test images {test.images.shape[1:]}"
        )
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    return Dataset(train, test, tuple(str(c) for c in range(num_classes)))


def _images(split, images, labels) -> Images:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{split} images must be uint8 [N, H, W] or [N, H, W, channels], "
            f"not {images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{split} labels must be {len(images)} integers, one an image, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    if not len(images):
        raise UserError(f"there are no {split} images")
    if labels.min() < 0:
        raise UserError(f"{split} labels count from 0, but one is {labels.min()}")
    images = images if images.ndim == 4 else images[..., None]
    return Images(images, labels.astype(np.int32))
