"""CIFAR-10 and CIFAR-100 from their original archives."""

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from orc_jax.data.images import Dataset, Images
from orc_jax.data.tfds import prepare_command
from orc_jax.errors import UserError


class _Form(NamedTuple):
    """A form in which CIFAR's authors publish a data set.

    Attributes:
      archive: name of the archive, without .tar.gz.
      folder: folder in the archive that contains the files below.
      train: files of the training images.
      test: file of the test images.
      names: file of the class names.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str


_FORMS = {
    "cifar10": (
        _Form(
            "cifar-10-python",
            "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
            "batches.meta",
        ),
        _Form(
            "cifar-10-binary",
            "cifar-10-batches-bin",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
        ),
    ),
    "cifar100": (
        _Form("cifar-100-python", "cifar-100-python", ("train",), "test", "meta"),
        _Form(
            "cifar-100-binary",
            "cifar-100-binary",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
        ),
    ),
}
_PIXELS = 3 * 32 * 32
# All (module, name) that the authors' pickles refer to.
_PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def load(name: str, directory: str | Path, test_only: bool = False) -> Dataset:
    """Read CIFAR from an original archive, unpacked or as .tar.gz, in Python or binary form.

    Args:
      name: "cifar10" or "cifar100".
      directory: folder that contains the archive.
      test_only: whether to leave the training images out.

    Raises:
      UserError: the archive is missing, or one of its files is truncated or corrupt.
    """
    for form, folder, archive in _places(name, directory):
        if folder.is_dir():
            return _read_form(name, form, folder, _folder_reader(folder), test_only)
        if archive.is_file():
            reader = _archive_reader(archive, form.folder)
            return _read_form(name, form, archive, reader, test_only)
    forms = " or ".join(f"{form.archive}.tar.gz" for form in _FORMS[name])
    raise UserError(
        f"{name} is not in {directory}: put {forms} there (data.dir names the folder), or "
        f"prepare it with TensorFlow Datasets: {prepare_command(name, directory)}"
    )


def is_there(name: str, directory: str | Path) -> bool:
    """Return whether a folder contains an original archive, unpacked or as .tar.gz.

    Args:
      name: "cifar10" or "cifar100".
      directory: the folder.
    """
    return any(
        folder.is_dir() or archive.is_file() for _, folder, archive in _places(name, directory)
    )


def _places(name, directory):
    """Yield every form with the paths of its folder and of its archive."""
    for form in _FORMS[name]:
        yield form, Path(directory) / form.folder, Path(directory) / f"{form.archive}.tar.gz"


def _read_form(name, form, source, read, test_only) -> Dataset:
    fine = name == "cifar100"
    parse = _parse_binary if form.archive.endswith("binary") else _parse_python

    def split(files) -> Images:
        parts = [parse(read(file), f"{source}: {file}", fine) for file in files]
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Images(images, labels)

    names = _class_names(read(form.names), f"{source}: {form.names}", fine)
    train = None if test_only else split(form.train)
    dataset = Dataset(train, split((form.test,)), names)
    for images in filter(None, dataset[:2]):
        if len(images.labels) and not 0 <= images.labels.min() <= images.labels.max() < len(names):
            raise UserError(f"{source} is corrupt: a label is not one of the {len(names)} classes")
    return dataset


def _folder_reader(folder):
    def read(file):
        try:
            return (folder / file).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / file} cannot be read: {error.strerror}") from error

    return read


def _archive_reader(archive, folder):
    """Read all files at once, front to back, because seeking in a .tar.gz unpacks it again."""
    try:
        with tarfile.open(archive) as tar:
            files = {
                member.name: tar.extractfile(member).read() for member in tar if member.isfile()
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or corrupt: {error}") from error

    def read(file):
        if f"{folder}/{file}" not in files:
            raise UserError(f"{archive} is truncated or corrupt: {folder}/{file} is missing")
        return files[f"{folder}/{file}"]

    return read


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of NumPy arrays and plain containers only; other classes could run code."""

    def find_class(self, module, name):
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(raw, where) -> dict:
    try:
        content = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: v for key, v in content.items()}
    except Exception as error:  # a damaged pickle raises exceptions of almost any type
        raise UserError(f"{where} is truncated or corrupt: {error}") from error


def _parse_python(raw, where, fine):
    content = _unpickle(raw, where)
    try:
        labels = np.asarray(content["fine_labels" if fine else "labels"])
        images = np.asarray(content["data"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where} is truncated or corrupt: no images and labels in it") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{where} is truncated or corrupt: labels are {labels.dtype.name}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < (100 if fine else 10):
        raise UserError(f"{where} is truncated or corrupt: labels up to {labels.max()}")
    labels = labels.astype(np.int32)
    if images.dtype != np.uint8 or images.shape != (len(labels), _PIXELS):
        raise UserError(f"{where} is truncated or corrupt: images are {list(images.shape)}")
    return _channels_last(images), labels


def _parse_binary(raw, where, fine):
    """Parse records of one label byte (two for CIFAR-100: coarse, fine) and 3072 pixels."""
    size = 1 + fine + _PIXELS
    if not raw or len(raw) % size:
        raise UserError(
            f"{where} is truncated or corrupt: {len(raw)} bytes, not a multiple of {size}"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, size)
    return _channels_last(records[:, -_PIXELS:]), records[:, int(fine)].astype(np.int32)


def _channels_last(flat):
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _class_names(raw, where, fine) -> tuple[str, ...]:
    if where.endswith(".txt"):
        names = raw.decode(errors="replace").split()
    else:
        names = _unpickle(raw, where).get("fine_label_names" if fine else "label_names", [])
    expected = 100 if fine else 10
    if not isinstance(names, list) or len(names) != expected:
        raise UserError(f"{where} is truncated or corrupt: it has not {expected} class names")
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where} is truncated or corrupt: its class names are no text")
    return tuple(names)
