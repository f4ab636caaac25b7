"""Folders of image files: `train/CLASS/…` and `val/CLASS/…`, or Tiny-ImageNet's own layout."""

import collections
import itertools
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from orc_jax.errors import UserError, counted

# The words by which people name the folders of splits: `Training`, `seg_train`, `test_images`.
WORDS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation"},
    "test": {"test", "testing", "eval", "evaluation"},
}
# What Pillow opens, but for documents, videos and scientific data.
SUFFIXES = tuple(
    sorted(
        {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        - {".bufr", ".emf", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".mpeg", ".mpg"}
        - {".ps", ".wmf"}
    )
)
# Unicode categories: control characters, surrogates, separators of lines and paragraphs.
BREAKING = {"Cc", "Cs", "Zl", "Zp"}
# What systems and programs leave in folders; hidden files and folders are passed over too.
LITTER = {"__macosx", "lost+found", "@eadir", "thumbs.db", "desktop.ini"}


class Files(NamedTuple):
    """Image files of a split.

    Attributes:
      root: folder that the paths are relative to.
      paths: path of every image, sorted within a class.
      labels: [N] int32 class indices.
      size: height and width to which the images are decoded, in pixels; 0 if not yet known.
      channels: 3, for RGB.
      bits: bits that the levels of 16-bit images have.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    size: int = 0
    channels: int = 3
    bits: int = 16

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
        return printable(str(self.file(i)))

    def select(self, rows: np.ndarray) -> "Files":
        """Return the images where a mask is true.

        Args:
          rows: [N] bool.
        """
        paths = tuple(itertools.compress(self.paths, rows))
        return self._replace(paths=paths, labels=self.labels[rows])

    def checksums(self) -> dict[str, list]:
        """Return the number and CRC-32 of the paths and of the labels, to compare splits by."""
        paths = os.fsencode("\n".join(self.paths))
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
      notes: lines for the user about what was left out.
    """

    train: Any
    test: Any
    class_names: tuple[str, ...]
    val: Any = None
    notes: tuple[str, ...] = ()


def printable(name: str) -> str:
    """Return a file's name on one line: line breaks and what is not UTF-8 are escaped.

    Args:
      name: the name, as Python's `os` functions return it.
    """
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in BREAKING else c for c in name)


def find(
    directory: str | Path, class_names: tuple[str, ...] = (), on_error: str = "stop"
) -> Listing:
    """List the images of a folder.

    The folder contains `train/CLASS/…`, with or without `val/CLASS/…` and `test/CLASS/…`, or only
    `CLASS/…`. One of the two is the test split; of both, `val` is the validation split. Images may
    also be in subfolders of the folder of their class. The names of splits may be spelled as in
    `WORDS`, with other words around. A folder with a file `wnids.txt` has Tiny-ImageNet's layout.

    Args:
      directory: the folder.
      class_names: names of the classes, to list only the test images; training images are then
        listed only if there is no second split. Empty to list both splits.
      on_error: "skip" to leave out classes without training images, and say so; or "stop".

    Raises:
      UserError: the folder does not exist or cannot be read, a class has no images, only the
        second split has a class, there is one class only, two folders may be the same split, or a
        symbolic link leads back to a folder above it.
    """
    root = Path(directory)
    class_names = tuple(map(_class_name, class_names))
    if not root.is_dir():
        raise UserError(f"there is no folder {root} (data.dir)")
    if (root / "wnids.txt").is_file():
        return _tiny_imagenet(root, test_only=bool(class_names))
    splits, notes = _splits(root, class_names), []
    test, val = splits.get("test"), splits.get("val")
    if test and val and not any(map(_is_folder, _entries(root / test))):
        notes.append(f"left out {root / test}, which has no folders of classes")
        test = None
    test, val = (test, val) if test else (val, None)
    others: collections.Counter = collections.Counter()
    if test and not class_names and "train" not in splits:
        raise UserError(f"{root} has a folder {test}, but none named train")
    if test and class_names:
        return Listing(None, _second(root, test, class_names, others), class_names)
    train = _by_class(root, splits.get("train", "."), others)
    empty = [name for name, paths in train.items() if not paths]
    if empty and on_error == "stop":
        raise UserError(
            f"{root / splits.get('train', '.') / empty[0]} has no image file "
            "(--config.data.on_error=skip leaves the class out)"
        )
    train = {name: paths for name, paths in train.items() if paths}
    names = tuple(train)
    if len(names) == 1:
        raise UserError(f"{root} has only one class ({names[0]}): is data.dir one folder too high?")
    second = [
        _second(root, split, names, others, empty) if split else None for split in (test, val)
    ]
    if empty:
        notes.append(f"left out classes without an image: {', '.join(empty)}")
    if others:
        counts = ", ".join(
            f"{count} {suffix or 'without'}" for suffix, count in sorted(others.items())
        )
        files = counted(others.total(), "file")
        notes.append(f"left out {files} other than images, by suffix: {counts}")
    return Listing(_files(root, train, names), second[0], names, second[1], tuple(notes))


def _splits(root, class_names) -> dict[str, str]:
    """Return split → name of its folder, for the splits that there are.

    Without class names, other words than a split's own count only beside training images with
    folders of classes: `bullet_train` and `test_tube` may be classes.
    """
    found: dict[str, list[str]] = {split: [] for split in WORDS}
    exact: dict[str, list[str]] = {split: [] for split in WORDS}
    unexplained = False
    for entry in filter(_is_folder, _entries(root)):
        words = set(re.split(r"[^a-z]+", entry.name.lower()))
        fitting = [split for split, known in WORDS.items() if words & known]
        if len(fitting) != 1:
            unexplained = True
        elif entry.name.lower() in WORDS[fitting[0]]:
            exact[fitting[0]].append(entry.name)
            found[fitting[0]].append(entry.name)
        elif entry.name not in class_names:
            found[fitting[0]].append(entry.name)
    if not class_names and not exact["train"]:
        has_classes = all(any(map(_is_folder, _entries(root / name))) for name in found["train"])
        alone = unexplained and not (found["test"] or found["val"])
        if not found["train"] or not has_classes or alone:
            found = exact
    splits: dict[str, str] = {}
    for split in WORDS:
        if len(names := exact[split] or found[split]) > 1:
            raise UserError(f"{root} has several folders of {split} images: {', '.join(names)}")
        if names:
            splits[split] = names[0]
    # Some archives repeat the name: seg_train/seg_train/CLASS.
    for split, name in splits.items():
        if (root / name / name).is_dir() and len(_entries(root / name)) == 1:
            splits[split] = f"{name}/{name}"
    return splits


def _second(root, split, names, others, left_out=()) -> Files:
    """List a split whose classes are those of `train`, but for classes that are left out."""
    by_class = {
        name: paths
        for name, paths in _by_class(root, split, others).items()
        if paths and name not in left_out
    }
    if unknown := sorted(by_class.keys() - set(names)):
        raise UserError(f"{root / split} has the class {unknown[0]!r}, which train does not have")
    return _files(root, by_class, names)


def _files(root, by_class, names) -> Files:
    index = {name: i for i, name in enumerate(names)}
    labels = [index[name] for name, paths in by_class.items() for _ in paths]
    paths = tuple(path for paths in by_class.values() for path in paths)
    return Files(root, paths, np.array(labels, np.int32))


def _by_class(root, split, others) -> dict[str, list[str]]:
    """Return class → paths of its images, both sorted; count all other files in `others`.

    A class is named by the NFC form of its folder's name: another system may have written the other
    form into a second split.
    """
    folder = root / split
    classes: dict[str, list[str]] = {}
    for entry in filter(_is_folder, _entries(folder)):
        classes.setdefault(_class_name(entry.name), []).append(entry.name)
    if not classes and next(images_below(folder), None):
        raise UserError(
            f"{folder} has images but no folders of classes: move every image into the folder of "
            "its class"
        )
    if not classes:
        raise UserError(f"{folder} has no folders of classes")
    return {
        name: [
            os.path.relpath(path, root)
            for folder_name in sorted(classes[name])
            for path in images_below(folder / folder_name, others)
        ]
        for name in sorted(classes)
    }


def _class_name(folder_name) -> str:
    return printable(unicodedata.normalize("NFC", folder_name))


def _entries(folder) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted, without hidden ones and litter."""
    try:
        with os.scandir(folder) as entries:
            wanted = [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in LITTER
            ]
            return sorted(wanted, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _is_folder(entry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise UserError(f"{entry.path} cannot be read: {error.strerror}") from error


def _is_file_or_broken(entry) -> bool:
    """Return whether an entry is a file, or a link to a file that is lost, which is an error later.

    To read from a pipe or a device would never end.
    """
    return entry.is_file() or not os.path.exists(entry.path)


def images_below(
    folder, others: collections.Counter | None = None, above: tuple[Path, ...] = ()
) -> Iterator[str]:
    """Find the image files in a folder and its subfolders.

    Args:
      folder: the folder.
      others: counts the files that are no images, by suffix.
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
            yield from images_below(entry.path, others, (*above, resolved))
        elif entry.name.lower().endswith(SUFFIXES) and _is_file_or_broken(entry):
            yield entry.path
        elif others is not None:
            others[os.path.splitext(entry.name)[1].lower()] += 1


def _tiny_imagenet(root, test_only) -> Listing:
    """List Tiny-ImageNet.

    The layout is `wnids.txt`, `train/WNID/images/*`, and `val/images/*` with their classes in
    `val/val_annotations.txt`. Scripts that sort the validation images into `val/WNID/` are for
    programs that sort the classes: then they are sorted here too.
    """
    names = tuple(_lines(root / "wnids.txt"))
    sorted_by_script = any((root / "val" / name).is_dir() for name in names)
    names = tuple(sorted(names)) if sorted_by_script else names

    def validation():
        if sorted_by_script:
            return _second(root, "val", names, collections.Counter())
        return _files(root, _annotated(root, names), names)

    if test_only:
        return Listing(None, validation(), names)
    train = _by_class(root, "train", collections.Counter())
    if train.keys() != set(names):
        unmatched = sorted(train.keys() ^ set(names))[0]
        raise UserError(f"{root}: the class {unmatched!r} is not in both wnids.txt and train")
    train = {name: train[name] for name in names}
    return Listing(_files(root, train, names), validation(), names)


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
