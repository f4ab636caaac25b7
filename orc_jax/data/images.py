"""Images in memory, data sets of a training and a test split, and parts of a split."""

import zlib
from typing import Any, NamedTuple

import numpy as np

from orc_jax.errors import UserError


class Images(NamedTuple):
    """Decoded images of a split.

    Attributes:
      images: [N, H, W, channels] uint8.
      labels: [N] int32 class indices.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def select(self, rows: np.ndarray) -> "Images":
        """Return the images where a mask is true.

        Args:
          rows: [N] bool.
        """
        return Images(self.images[rows], self.labels[rows])

    def checksums(self) -> dict[str, list]:
        """Return the shape and CRC-32 of each array, by name, to compare splits by."""
        return {
            name: [list(array.shape), zlib.crc32(np.ascontiguousarray(array).data)]
            for name, array in self._asdict().items()
        }


class Dataset(NamedTuple):
    """A training and a test split with the same classes, and perhaps a validation split.

    Attributes:
      train: the training images, `Images`, or encoded images (`folder.Files`, `tfds.Records`);
        None if only the test images were requested.
      test: the test images, of the same type.
      class_names: names of the classes, in the order of their indices.
      val: images to choose a checkpoint by, of the same type; None without.
      bits: bits that the levels of 16-bit image files have.
    """

    train: Any
    test: Any
    class_names: tuple[str, ...]
    val: Any = None
    bits: int = 16

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.test.image_shape

    @property
    def streamed(self) -> bool:
        """Whether images are decoded when they are used, as they do not all fit into memory."""
        return not isinstance(self.test, Images)


def hold_out(train, share: float, seed: int) -> tuple:
    """Hold out a random share of every class, but never all of its images.

    Args:
      train: the training images, decoded or encoded.
      share: share of every class to hold out, 0 to 1.
      seed: seed of the random choice.

    Returns:
      (the remaining images, the held-out images), the latter None if the share is 0.
    """
    if not share:
        return train, None
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(train.labels), bool)
    for label in np.unique(train.labels):
        members = rng.permutation(np.flatnonzero(train.labels == label))
        held_out[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return train.select(~held_out), train.select(held_out)


def subsample(train, count: int, seed: int):
    """Draw a random subset of a split in which every class keeps its share of the images.

    Args:
      train: the training images, decoded or encoded.
      count: number of images to draw; 0 for all.
      seed: seed of the random choice.

    Raises:
      UserError: the split has fewer images.
    """
    total = len(train.labels)
    if count > total:
        raise UserError(
            f"data.train_images is {count}, allowed: at most the {total} that there are"
        )
    if not count:
        return train
    # Each image gets a random rank in its class, scaled to 0 … 1. The images of the lowest ranks
    # then come from all classes in proportion.
    order = np.random.default_rng(seed).permutation(total)
    rank = np.empty(total)
    for label in np.unique(train.labels):
        members = order[train.labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    drawn = np.zeros(total, bool)
    drawn[order[np.argsort(rank[order], kind="stable")[:count]]] = True
    return train.select(drawn)


def from_arrays(arrays, where: str = "data") -> Dataset:
    """Make a data set of the caller's own arrays.

    Args:
      arrays: (train images, train labels, test images, test labels). The images are uint8,
        [N, H, W] or [N, H, W, channels]; the labels are integers from 0, [N].
      where: what the arrays are called in errors.

    Raises:
      UserError: the arrays do not have this form.
    """
    if not isinstance(arrays, tuple | list) or len(arrays) != 4:
        given = f"{len(arrays)} of them" if isinstance(arrays, tuple | list) else type(arrays)
        raise UserError(
            f"{where} is not four arrays (train images, train labels, test images, test labels), "
            f"but {given}"
        )
    train, test = _images("train", *arrays[:2]), _images("test", *arrays[2:])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"train images are {train.images.shape[1:]}, test images {test.images.shape[1:]}"
        )
    classes = np.unique(train.labels)
    if len(classes) == 1:
        raise UserError(f"all train labels are {classes[0]}: there is only one class")
    if classes[0] != 0 or classes[-1] != len(classes) - 1:
        missing = np.flatnonzero(classes != np.arange(len(classes)))[0]
        raise UserError(
            f"train labels must be all of 0 to C − 1, but none is {missing} (the largest is "
            f"{classes[-1]}): number them by np.unique(labels, return_inverse=True)"
        )
    if len(unknown := np.setdiff1d(test.labels, classes)):
        raise UserError(f"test labels have the class {unknown[0]}, which train labels do not have")
    return Dataset(train, test, tuple(map(str, classes)))


def _images(split, images, labels) -> Images:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype.kind == "f" and images.size:
        levels = "images * 255" if images.max() <= 1 else "images"
        remedy = f"np.uint8(({levels}).round())"
        if not np.isfinite(images).all() or images.min() < 0 or images.max() > 255:
            remedy = "scale them to 0 to 255 as they were before they were normalised"
        raise UserError(f"{split} images must be uint8, not {images.dtype}: {remedy}")
    if labels.dtype.kind in "iufb" and labels.ndim == 2 and (labels.sum(axis=1) == 1).all():
        raise UserError(f"{split} labels are one-hot: pass labels.argmax(axis=1)")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{split} images must be uint8 [N, H, W] or [N, H, W, channels], "
            f"not {images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iub" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{split} labels must be {len(images)} integers, one per image, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    if not len(images):
        raise UserError(f"there are no {split} images")
    if labels.max() >= 2**31:
        raise UserError(f"{split} labels are numbers of classes, but one is {labels.max()}")
    if labels.min() < 0:
        raise UserError(f"{split} labels count from 0, but one is {labels.min()}")
    images = images if images.ndim == 4 else images[..., None]
    return Images(images, labels.astype(np.int32))
