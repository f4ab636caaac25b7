"""Folders of image files: `train/CLASS/…` and `val/CLASS/…`, or Tiny-ImageNet's own layout."""

import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orc_jax.errors import UserError

# Names of the folders of the splits beside `train`; of each, the first that exists is used.
VAL, TEST = ("val", "valid", "validation"), ("test",)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Files(NamedTuple):
    """Image files of a split.

    Attributes:
      root: folder that the paths are relative to.
      paths: path of every image, sorted within a class.
      labels: [N] int32 class indices.
      size: height and width to which the images are decoded, in pixels; 0 if not yet known.
      channels: 3, for RGB.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    size: int = 0
    channels: int = 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, self.channels

    def file(self, i: int) -> Path:
        """Return the path of an image.

        Args:
          i: index of the image.
        """
        return self.root / self.paths[i]

    def name(self, i: int) -> str:
        """Return the name of an image in messages.

        Args:
          i: index of the image.
        """
        return str(self.file(i))

    def select(self, rows: np.ndarray) -> "Files":
        """Return the images where a mask is true.

        Args:
          rows: [N] bool.
        """
        paths = tuple(itertools.compress(self.paths, rows))
        return self._replace(paths=paths, labels=self.labels[rows])

    def checksums(self) -> dict[str, list]:
        """Return the number and CRC-32 of the paths and of the labels, to compare splits by."""
        paths = "\n".join(self.paths).encode()
        return {
            "files": [len(self.paths), zlib.crc32(paths)],
            "labels": [len(self.labels), zlib.crc32(self.labels.tobytes())],
        }


class Listing(NamedTuple):
    """The encoded images of a data set.

    Attributes:
      train: the training images, `Files` or `tfds.Records`; None if only the test images are
        requested and they have a split of their own.
      test: the test images, of the same type; None if the data set has no second split.
      class_names: names of the classes, in the order of their indices.
      val: images of a third split, to choose a checkpoint by; None without.
    """

    train: Any
    test: Any
    class_names: tuple[str, ...]
    val: Any = None


def find(directory: str | Path, class_names: tuple[str, ...] = ()) -> Listing:
    """List the images of a folder.

    The folder contains `train/CLASS/…`, with or without `val/CLASS/…` and `test/CLASS/…`, or only
    `CLASS/…`. One of the two is the test split; of both, `val` is the validation split. Images may
    also be in subfolders of the folder of their class. A folder with a file `wnids.txt` has
    Tiny-ImageNet's layout.

    Args:
      directory: the folder.
      class_names: names of the classes, to list only the test images; training images are then
        listed only if there is no second split. Empty to list both splits.

    Raises:
      UserError: the folder does not exist or cannot be read, a class has no images, only the
        second split has a class, or a symbolic link leads back to a folder above it.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"there is no folder {root} (data.dir)")
    if (root / "wnids.txt").is_file():
        return _tiny_imagenet(root, test_only=bool(class_names))
    val, test = (
        next((name for name in names if (root / name).is_dir()), None) for names in (VAL, TEST)
    )
    val, test = (val, test) if test else (None, val)
    if test and not class_names and not (root / "train").is_dir():
        raise UserError(f"{root} has a folder {test}, but none named train")
    if test and class_names:
        return Listing(None, _second(root, test, class_names), class_names)
    train = _by_class(root, "train" if (root / "train").is_dir() else ".")
    names = tuple(train)
    others = [_second(root, split, names) if split else None for split in (test, val)]
    return Listing(_files(root, train, names), others[0], names, others[1])


def _second(root, split, names) -> Files:
    """List a split whose classes are those of `train`."""
    by_class = _by_class(root, split)
    if unknown := sorted(by_class.keys() - set(names)):
        raise UserError(f"{root / split} has the class {unknown[0]!r}, which train does not have")
    return _files(root, by_class, names)


def _files(root, by_class, names) -> Files:
    index = {name: i for i, name in enumerate(names)}
    labels = [index[name] for name, paths in by_class.items() for _ in paths]
    paths = tuple(path for paths in by_class.values() for path in paths)
    return Files(root, paths, np.array(labels, np.int32))


def _by_class(root, split) -> dict[str, list[str]]:
    """Return class → paths of its images, both sorted."""
    folder = root / split
    classes = sorted(entry.name for entry in _entries(folder) if _is_folder(entry))
    if not classes:
        raise UserError(f"{folder} has no folders of classes")
    by_class = {}
    for name in classes:
        by_class[name] = [os.path.relpath(path, root) for path in images_below(folder / name)]
        if not by_class[name]:
            raise UserError(f"{folder / name} has no image ({', '.join(SUFFIXES)})")
    return by_class


def _entries(folder) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            return sorted(visible, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _is_folder(entry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise UserError(f"{entry.path} cannot be read: {error.strerror}") from error


def images_below(folder, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Find the image files in a folder and its subfolders.

    Args:
      folder: the folder.
      above: resolved paths of the folders above it, through which the search came.

    Yields:
      Path of each image, in sorted order.

    Raises:
      UserError: a folder cannot be read, or is a symbolic link to a folder above it.
    """
    resolved = Path(folder).resolve()
    above = above or tuple(resolved.parents)
    if resolved in above:
        raise UserError(f"{folder} is a symbolic link back to {resolved}, a folder above it")
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from images_below(entry.path, (*above, resolved))
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _tiny_imagenet(root, test_only) -> Listing:
    """List Tiny-ImageNet.

    The layout is `wnids.txt`, `train/WNID/images/*`, and `val/images/*` with their classes in
    `val/val_annotations.txt`.
    """
    names = tuple(_lines(root / "wnids.txt"))
    if test_only:
        return Listing(None, _files(root, _annotated(root, names), names), names)
    train = _by_class(root, "train")
    if train.keys() != set(names):
        unmatched = sorted(train.keys() ^ set(names))[0]
        raise UserError(f"{root}: the class {unmatched!r} is not in both wnids.txt and train")
    train, test = {name: train[name] for name in names}, _annotated(root, names)
    return Listing(_files(root, train, names), _files(root, test, names), names)


def _annotated(root, names) -> dict[str, list[str]]:
    """Return class → paths of Tiny-ImageNet's validation images."""
    val: dict[str, list[str]] = {name: [] for name in names}
    annotations = root / "val" / "val_annotations.txt"
    for number, line in enumerate(_lines(annotations), 1):
        file, name, *_ = [*line.split("\t"), ""]
        if name not in val:
            raise UserError(f"{annotations}, line {number}: {name!r} is not in wnids.txt")
        val[name].append(f"val/images/{file}")
    return val


def _lines(path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
