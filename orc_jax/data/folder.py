"""Folders of image files: `train/CLASS/…` and `val/CLASS/…`, or Tiny-ImageNet's own layout."""

import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orc_jax.errors import UserError

SECOND = (
    "val",
    "valid",
    "validation",
    "test",
)  # names of the second split, the first that is there
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Files(NamedTuple):
    """Image files of a split.

    Attributes:
      root: folder that the paths begin at.
      paths: of every image, sorted within a class.
      labels: [N] int32 class indices.
      size: to which they are decoded; 0: not known yet.
      channels: 3, RGB.
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
        """The i-th image."""
        return self.root / self.paths[i]

    def name(self, i: int) -> str:
        """What to call the i-th image."""
        return str(self.file(i))

    def select(self, rows: np.ndarray) -> "Files":
        """Those where the mask holds."""
        paths = tuple(itertools.compress(self.paths, rows))
        return self._replace(paths=paths, labels=self.labels[rows])

    def checksums(self) -> dict[str, list]:
        """Name → what tells it from another split: number and CRC-32 of the paths, and labels."""
        paths = "\n".join(self.paths).encode()
        return {
            "files": [len(self.paths), zlib.crc32(paths)],
            "labels": [len(self.labels), zlib.crc32(self.labels.tobytes())],
        }


class Listing(NamedTuple):
    """The encoded images of a data set.

    Attributes:
      train, test: the splits, `Files` or `tfds.Records`; `test` is None if there is no second,
        `train` if only the test images are wanted and there is one.
      class_names: in the order of their indices.
    """

    train: Any
    test: Any
    class_names: tuple[str, ...]


def find(directory: str | Path, class_names: tuple[str, ...] = ()) -> Listing:
    """Lists the images of a folder.

    It has `train/CLASS/…`, with or without `val/CLASS/…` or `test/CLASS/…`, or
    `CLASS/…` alone; images may lie in folders below that of their class. Tiny-ImageNet's
    layout is known by its `wnids.txt`.

    Args:
      directory: the folder.
      class_names: if they are known, only the test images are wanted: training images are listed
        where there is no second split.

    Raises:
      UserError: there is no such folder, a class has no image, a class is in the second
        split alone, a folder cannot be read or leads back into itself.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"there is no folder {root} (data.dir)")
    if (root / "wnids.txt").is_file():
        return _tiny_imagenet(root, test_only=bool(class_names))
    second = next((name for name in SECOND if (root / name).is_dir()), None)
    if second and class_names:
        test = _by_class(root, second)
        _check_classes(root / second, test, class_names)
        return Listing(None, _files(root, test, class_names), class_names)
    if second and not (root / "train").is_dir():
        raise UserError(f"{root} has a folder {second}, but none named train")
    train = _by_class(root, "train" if (root / "train").is_dir() else ".")
    names = tuple(train)
    if not second:
        return Listing(_files(root, train, names), None, names)
    test = _by_class(root, second)
    _check_classes(root / second, test, names)
    return Listing(_files(root, train, names), _files(root, test, names), names)


def _check_classes(folder, by_class, names):
    if alone := sorted(by_class.keys() - set(names)):
        raise UserError(f"{folder} has the class {alone[0]!r}, which train has not")


def _files(root, by_class, names) -> Files:
    index = {name: i for i, name in enumerate(names)}
    labels = [index[name] for name, paths in by_class.items() for _ in paths]
    paths = tuple(path for paths in by_class.values() for path in paths)
    return Files(root, paths, np.array(labels, np.int32))


def _by_class(root, split) -> dict[str, list[str]]:
    """Class → its images, each in sorted order."""
    folder = root / split
    classes = sorted(entry.name for entry in _entries(folder) if _is_folder(entry))
    if not classes:
        raise UserError(f"{folder} has no folders of classes")
    found = {}
    for name in classes:
        found[name] = [os.path.relpath(path, root) for path in images_below(folder / name)]
        if not found[name]:
            raise UserError(f"{folder / name} has no image ({', '.join(SUFFIXES)})")
    return found


def _entries(folder) -> list[os.DirEntry]:
    """What is in a folder, in order, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            return sorted(shown, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _is_folder(entry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise UserError(f"{entry.path} cannot be read: {error.strerror}") from error


def images_below(folder, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """The image files in a folder and those below it."""
    here = Path(folder).resolve()
    above = above or tuple(here.parents)
    if here in above:
        raise UserError(f"{folder} is a symbolic link back to {here}, a folder above it")
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from images_below(entry.path, (*above, here))
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _tiny_imagenet(root, test_only) -> Listing:
    """`train/WNID/images/*`, `val/images/*` with `val/val_annotations.txt`, `wnids.txt`."""
    names = tuple(_lines(root / "wnids.txt"))
    if test_only:
        return Listing(None, _files(root, _annotated(root, names), names), names)
    train = _by_class(root, "train")
    if train.keys() != set(names):
        odd = sorted(train.keys() ^ set(names))[0]
        raise UserError(f"{root}: the class {odd!r} is not both in wnids.txt and in train")
    train, test = {name: train[name] for name in names}, _annotated(root, names)
    return Listing(_files(root, train, names), _files(root, test, names), names)


def _annotated(root, names) -> dict[str, list[str]]:
    """Class → Tiny-ImageNet's validation images."""
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
