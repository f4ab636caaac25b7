"""Data sets prepared by TensorFlow Datasets in array_record form, read without TensorFlow."""

import hashlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from orc_jax.cache import cached
from orc_jax.data.folder import Listing
from orc_jax.display import console
from orc_jax.errors import UserError


class Records(NamedTuple):
    """Encoded images of a split; the interface is that of `folder.Files`.

    Attributes:
      source: the split, as TFDS reads it: row → {"image": bytes, "label": int, ...}.
      where: what to call it, e.g. "data/cifar100/3.0.2, train".
      rows: of every image.
      labels: [N] int32 class indices.
      channels: 1 (grey) or 3.
      size: to which they are decoded; 0: not known yet.
    """

    source: Any
    where: str
    rows: np.ndarray
    labels: np.ndarray
    channels: int
    size: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, self.channels

    def file(self, i: int) -> io.BytesIO:
        """The i-th image, encoded.

        Raises:
          OSError: the record is damaged.
        """
        try:
            return io.BytesIO(self.source[int(self.rows[i])]["image"])
        except Exception as error:  # array_record raises many kinds
            raise OSError(f"its record is damaged: {error}") from error

    def name(self, i: int) -> str:
        """What to call the i-th image."""
        return f"{self.where}, record {self.rows[i]}"

    def select(self, rows: np.ndarray) -> "Records":
        """Those where the mask holds."""
        return self._replace(rows=self.rows[rows], labels=self.labels[rows])

    def checksums(self) -> dict[str, list]:
        """Name → what tells it from another split: number and CRC-32 of rows and labels."""
        return {
            name: [len(array), zlib.crc32(array.tobytes())]
            for name, array in (("records", self.rows), ("labels", self.labels))
        }


def prepare_command(name: str, directory: str | Path) -> str:
    """The command that downloads and prepares a data set; it needs TensorFlow and a network."""
    return (
        f"pip install tensorflow-datasets tensorflow && "
        f"tfds build {name} --data_dir={directory} --file_format=array_record "
        "(TensorFlow is needed for this once, on any machine with a network; "
        "the folder can be copied)"
    )


def is_prepared(name: str, directory: str | Path) -> bool:
    """Whether any version of the data set is prepared there, in any form."""
    return bool(_versions(name, directory))


def _versions(name, directory):
    found = Path(directory).glob(f"{name}/*/dataset_info.json")
    return sorted(found, key=lambda info: [int(n) for n in re.findall(r"\d+", info.parent.name)])


def find(name: str, data) -> Listing:
    """The images of the newest version prepared in `data.dir`: `train`, and `test` or `validation`.

    Every record is read once for its label, and the labels are kept.

    Args:
      name: of the builder.
      data: `config.data`; its `dir` is the `--data_dir` of the preparation.

    Raises:
      UserError: not prepared, prepared in another form, corrupt, not images with labels, or
        tensorflow-datasets is missing.
    """
    builder, tfds = _builder(name, data.dir)
    features, splits = builder.info.features, list(builder.info.splits)
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(f"{name} is no data set of images and labels: it has {', '.join(features)}")
    if "train" not in splits:
        raise UserError(f"{name} has no split named train, but {', '.join(splits)}")
    height, width, channels = features["image"].shape
    encoded = {"image": tfds.decode.SkipDecoding()}
    sources = {}
    for split in ("train", "test", "validation"):
        if split in splits:
            sources[split] = builder.as_data_source(split=split, decoders=encoded)
    folder, size = builder.data_dir, height if height == width and height else 0

    def records(split) -> Records:
        labels = _labels(sources[split], Path(folder), split, data)
        rows = np.arange(len(labels))
        channels_read = 1 if channels == 1 else 3
        return Records(sources[split], f"{folder}, {split}", rows, labels, channels_read, size)

    # ImageNet's test split has no classes.
    second = next((s for s in sources if s != "train" and _first(sources[s], folder) >= 0), None)
    return Listing(records("train"), second and records(second), tuple(features["label"].names))


def _builder(name, directory):
    if not is_prepared(name, directory):
        raise UserError(f"{name} is not in {directory}: {prepare_command(name, directory)}")
    info = _versions(name, directory)[-1]
    try:
        form = json.loads(info.read_text()).get("fileFormat")
    except (OSError, ValueError) as error:
        raise UserError(f"{info} is corrupt: {error}") from error
    if form != "array_record":
        raise UserError(
            f"{info.parent} is prepared as {form}, which only TensorFlow reads: prepare it again "
            f"with {prepare_command(name, directory)}"
        )
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{info.parent} needs tensorflow-datasets to be read: "
            "pip install 'orc-jax[tfds]' (without TensorFlow)"
        ) from error
    try:
        return tfds.builder_from_directory(info.parent), tfds
    except Exception as error:
        # The readers raise many kinds for damaged files.
        raise UserError(f"{info.parent} cannot be read: {error}") from error


def _first(source, folder) -> int:
    return _read(lambda: source[0]["label"], folder)


def _labels(source, folder: Path, split, data) -> np.ndarray:
    key = hashlib.sha256(f"labels {split}".encode())
    for file in sorted(folder.iterdir()):
        key.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    key.update((folder / "dataset_info.json").read_bytes())

    def everything():
        labels = np.empty(len(source), np.int32)
        with Progress(transient=True, console=console()) as progress:
            for i in progress.track(range(len(source)), description=f"reading {split} labels"):
                labels[i] = source[i]["label"]
        return {"labels": labels}

    return _read(lambda: cached(data, key.hexdigest(), everything)["labels"], folder)


def _read(get, folder):
    try:
        return get()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder} cannot be read: {error}") from error
