"""MNIST and its relatives, from files in the IDX format (http://yann.lecun.com/exdb/mnist/).

MNIST, Fashion-MNIST, KMNIST, EMNIST and QMNIST are published in it, each split as a file of images
and one of labels, compressed or not: `train-images-idx3-ubyte.gz`, `t10k-labels-idx1-ubyte`,
`emnist-letters-test-images-idx3-ubyte`, ….
"""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orc_jax.data.images import Dataset, Images
from orc_jax.errors import UserError

CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
# "idx" is any directory with such files; its classes are named by their numbers.
NAMES = (*CLASSES, "idx")
# Where packages put the files: Debian's dataset-fashion-mnist.
INSTALLED = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_FILE = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)[-_.]?(?P<part>images|labels)"
    r"[-_.]idx[1-3][-_.](ubyte|int)(\.gz)?"
)
_TYPES: dict[int, Any] = {0x08: np.uint8, 0x0C: np.dtype(">i4")}


class _Files(NamedTuple):
    """The files of a set: (split, part) → path, with "train" or "test", "images" or "labels"."""

    folder: Path
    prefix: str
    paths: dict[tuple[str, str], Path]


def load(name: str, directory: str | Path, test_only: bool = False) -> Dataset:
    """Read a data set from its IDX files.

    Args:
      name: one of `NAMES`.
      directory: folder of the files. Where it has several sets, as EMNIST's has, the path ends with
        the beginning of the files' names: FOLDER/emnist-letters.
      test_only: whether to leave the training images out.

    Raises:
      UserError: a file is missing, truncated or not of this format, or the labels are not those of
        the classes.
    """
    files = _find(name, Path(directory))
    parts = {key: _read(path) for key, path in files.paths.items() if key[1] == "labels"}
    labels = {split: _labels(files.paths[split, part], x) for (split, part), x in parts.items()}
    known = np.unique(labels["train"])
    names = CLASSES.get(name, tuple(map(str, known)))
    if name in CLASSES:
        known = np.arange(len(names))
    splits = {}
    for split in ("test",) if test_only else ("train", "test"):
        own, path = labels[split], files.paths[split, "images"]
        if unknown := sorted(set(own.tolist()) - set(known.tolist())):
            shown = ", ".join(map(str, unknown[:5]))
            raise UserError(f"{files.paths[split, 'labels']} has labels of no class: {shown}")
        images = _images(path, _read(path))
        if len(images) != len(own):
            raise UserError(
                f"{path} has {len(images)} images, {files.paths[split, 'labels']} {len(own)} labels"
            )
        if files.prefix.startswith("emnist"):
            images = images.swapaxes(1, 2)  # EMNIST's files hold every image transposed
        splits[split] = Images(
            np.ascontiguousarray(images[..., None]),
            np.searchsorted(known, own).astype(np.int32),
        )
    return Dataset(splits.get("train"), splits["test"], names)


def _find(name, directory) -> _Files:
    """Find the four files of a set, in the folder itself or where programs unpack them."""
    torchvision = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
    # MNIST, Fashion-MNIST and KMNIST have files of the same names: folders that name the set first.
    places = [(directory / name, ""), (directory / torchvision.get(name, name) / "raw", "")]
    places += [(directory, ""), (directory.parent, directory.name)]
    places += [(INSTALLED[name], "")] if name in INSTALLED else []
    for folder, beginning in places:
        found: dict[str, dict] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _FILE.fullmatch(path.name)
            if match and path.name.startswith(beginning):
                split = "train" if match["split"] == "train" else "test"
                # Of a compressed file and the same one unpacked, the latter comes first.
                found.setdefault(match["set"], {}).setdefault((split, match["part"]), path)
        whole = {key: paths for key, paths in found.items() if len(paths) == 4}
        if len(whole) > 1:
            shown = ", ".join(f"{folder / key.rstrip('-_.')}" for key in whole)
            raise UserError(f"{folder} has several data sets: let data.dir be one of {shown}")
        if whole:
            ((prefix, paths),) = whole.items()
            return _Files(folder, prefix, paths)
    package = " (Debian: apt-get install dataset-fashion-mnist)" if name in INSTALLED else ""
    raise UserError(
        f"{name} is not in {directory}: put train-images-idx3-ubyte.gz, "
        "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
        f"there{package}; data.dir names the folder"
    )


def _read(path: Path) -> np.ndarray:
    """Read an array: two zero bytes, type, number of dimensions, the dimensions, the values."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES:
        raise UserError(f"{path} is not an IDX file of bytes or 32-bit integers")
    dtype, start = np.dtype(_TYPES[raw[2]]), 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:start], ">u4").tolist())
    expected = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(shape) != raw[3] or len(raw) != expected:
        raise UserError(f"{path} is truncated or corrupt: {len(raw)} bytes, expected {expected}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def _labels(path, array) -> np.ndarray:
    # QMNIST's labels have further columns about the writer.
    array = array[:, 0] if array.ndim == 2 else array
    if array.ndim != 1:
        raise UserError(f"{path} has {array.ndim} dimensions, labels have 1")
    return array.astype(np.int64)


def _images(path, array) -> np.ndarray:
    if array.ndim != 3 or array.dtype != np.uint8:
        raise UserError(f"{path} is {array.dtype} {list(array.shape)}, images are bytes [N, H, W]")
    return array
