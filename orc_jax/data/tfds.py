"""Data sets prepared by TensorFlow Datasets in array_record form, read without TensorFlow."""

import hashlib
import io
import json
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orc_jax.data import faults
from orc_jax.data.cache import cached
from orc_jax.data.folder import Listing
from orc_jax.data.host import Host
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
      faults: index → what is wrong with the image.
    """

    source: Any
    where: str
    rows: np.ndarray
    labels: np.ndarray
    channels: int
    size: int = 0
    faults: dict[int, str] = {}  # noqa: RUF012 - never written to

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, self.channels

    def file(self, i: int) -> io.BytesIO:
        """The i-th image, encoded.

        Raises:
          OSError: the record is damaged, or has no label.
        """
        if i in self.faults:
            raise OSError(self.faults[i])
        return io.BytesIO(self.source[int(self.rows[i])]["image"])

    def name(self, i: int) -> str:
        """What to call the i-th image."""
        return f"{self.where}, record {self.rows[i]}"

    def select(self, rows: np.ndarray) -> "Records":
        """Those where the mask holds."""
        kept = np.flatnonzero(rows)
        faults = {i: self.faults[at] for i, at in enumerate(kept.tolist()) if at in self.faults}
        return self._replace(rows=self.rows[kept], labels=self.labels[kept], faults=faults)

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


def find(
    name: str, directory: str | Path, host: Host, class_names: tuple[str, ...] = ()
) -> Listing:
    """The images of the newest version prepared there: `train`, and `validation` or `test`.

    Every record is read once for its label and looked at, and what was found is kept.

    Args:
      name: of the builder.
      directory: the `--data_dir` of the preparation.
      host: the program that loads them.
      class_names: if they are known, only the test images are wanted: training images are read
        where there is no second split.

    Raises:
      UserError: not prepared, prepared in another form, corrupt, not images with labels, or
        tensorflow-datasets is missing.
    """
    builder, sources = _open(name, directory)
    features, folder = builder.info.features, Path(builder.data_dir)
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(f"{name} is no data set of images and labels: it has {', '.join(features)}")
    if "train" not in sources:
        raise UserError(f"{name} has no split named train, but {', '.join(sources)}")
    height, width, channels = features["image"].shape
    size, channels = height if height == width and height else 0, 1 if channels == 1 else 3
    names = tuple(features["label"].names)

    def records(split) -> Records:
        labels, bad = _looked_at(sources[split], folder, split, len(names), host)
        rows = np.arange(len(labels))
        where = f"{folder}, {split}"
        return Records(sources[split], where, rows, labels, channels, size, bad)

    train = None if class_names else records("train")
    for split in ("validation", "test"):
        # ImageNet's test split has no classes.
        if split in sources and len((second := records(split)).faults) < len(second.labels):
            return Listing(train, second, names)
    return Listing(train or records("train"), None, names)


def _open(name, directory):
    """The builder, and its splits with images left encoded."""
    if not re.fullmatch(r"[\w/]+", name) or name.startswith("/"):
        raise UserError(f"data.name is 'tfds:{name}', allowed: tfds: and the name of a data set")
    if not is_prepared(name, directory):
        raise UserError(f"{name} is not in {directory}: {prepare_command(name, directory)}")
    info = _versions(name, directory)[-1]
    try:
        form = json.loads(info.read_text()).get("fileFormat")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{info} is corrupt: {error}") from error
    if form != "array_record":
        raise UserError(
            f"{info.parent} is prepared as {form}, which only TensorFlow reads: prepare it again "
            f"with {prepare_command(name, directory)}"
        )
    try:
        import array_record  # noqa: F401 - what TFDS reads it with
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{info.parent} needs tensorflow-datasets and array_record to be read: "
            "pip install 'orc-jax[tfds]' (without TensorFlow)"
        ) from error
    try:
        builder = tfds.builder_from_directory(info.parent)
        encoded = {"image": tfds.decode.SkipDecoding()}
        return builder, {
            split: builder.as_data_source(split=split, decoders=encoded)
            for split in builder.info.splits
        }
    except Exception as error:
        # The readers raise many kinds for damaged files.
        raise UserError(f"{info.parent} cannot be read: {error}") from error


def _looked_at(source, folder: Path, split, classes: int, host) -> tuple[np.ndarray, dict]:
    """The label of every record (0 where it is at fault), and index → what is wrong."""
    key = hashlib.sha256(f"records {split}".encode())
    for file in sorted(folder.iterdir()):
        key.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    key.update((folder / "dataset_info.json").read_bytes())

    def look(i):
        try:
            record = source[i]
        except Exception as error:  # array_record raises many kinds
            return 0, f"its record is damaged: {' '.join(str(error).split())}"
        if not 0 <= record["label"] < classes:
            return 0, f"its label is {record['label']}"
        return record["label"], faults.fault(io.BytesIO(record["image"]))

    def everything():
        count = len(source)
        with ThreadPoolExecutor() as pool, host.progress(f"reading {split} labels", count) as done:
            labels, bad = np.zeros(count, np.int32), {}
            for i, (label, why) in enumerate(pool.map(look, range(count))):
                done()
                labels[i] = label
                if why:
                    bad[i] = why
        return {"labels": labels} | faults.to_arrays(bad)

    kept = cached(host.folder, key.hexdigest(), everything)
    return kept["labels"], faults.from_arrays(kept)
