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
    """Encoded images of a split, with the interface of `folder.Files`.

    Attributes:
      source: TFDS's data source of the split, row → {"image": bytes, "label": int, ...}.
      where: name of the split in messages, e.g. "data/cifar100/3.0.2, train".
      rows: [N] row of every image in the source.
      labels: [N] int32 class indices.
      channels: 3, or 1 for grey.
      size: height and width to which the images are decoded, in pixels; 0 if not yet known.
      faults: index of a damaged image → what is wrong with it.
      bits: bits that the levels of 16-bit images have.
    """

    source: Any
    where: str
    rows: np.ndarray
    labels: np.ndarray
    channels: int
    size: int = 0
    faults: dict[int, str] = {}  # noqa: RUF012 - the default is never changed
    bits: int = 16

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, self.channels

    def file(self, i: int) -> io.BytesIO:
        """Return an encoded image.

        Args:
          i: index of the image.

        Raises:
          OSError: the record is damaged, or its label is not that of a class.
        """
        if i in self.faults:
            raise OSError(self.faults[i])
        return io.BytesIO(self.source[int(self.rows[i])]["image"])

    def name(self, i: int) -> str:
        """Return the name of an image in messages.

        Args:
          i: index of the image.
        """
        return f"{self.where}, record {self.rows[i]}"

    def select(self, rows: np.ndarray) -> "Records":
        """Return the images where a mask is true.

        Args:
          rows: [N] bool.
        """
        kept = np.flatnonzero(rows)
        faults = {
            new: self.faults[old] for new, old in enumerate(kept.tolist()) if old in self.faults
        }
        return self._replace(rows=self.rows[kept], labels=self.labels[kept], faults=faults)

    def checksums(self) -> dict[str, list]:
        """Return the number and CRC-32 of the rows and of the labels, to compare splits by."""
        return {
            name: [len(array), zlib.crc32(array.tobytes())]
            for name, array in (("records", self.rows), ("labels", self.labels))
        }


def prepare_command(name: str, directory: str | Path) -> str:
    """Return the shell command that downloads and prepares a data set, which needs TensorFlow.

    Args:
      name: name of the builder.
      directory: folder of prepared data sets, TFDS's `--data_dir`.
    """
    return (
        f"pip install tensorflow-datasets tensorflow && "
        f"tfds build {name} --data_dir={directory} --file_format=array_record "
        "(TensorFlow is needed for this once, on any machine with a network; "
        "the folder can be copied)"
    )


def is_prepared(name: str, directory: str | Path) -> bool:
    """Return whether any version of a data set is prepared, in any file format.

    Args:
      name: name of the builder.
      directory: folder of prepared data sets, TFDS's `--data_dir`.
    """
    return bool(_versions(name, directory))


def _versions(name, directory):
    """Return the `dataset_info.json` of every prepared version that fits, from old to new.

    The name may have a config and a version, as in "imagenette/320px-v2:1.*.*".
    """
    base, _, version = name.partition(":")
    infos = Path(directory).glob(f"{base}/{version or '*'}/dataset_info.json")
    return sorted(infos, key=lambda info: [int(n) for n in re.findall(r"\d+", info.parent.name)])


def find(
    name: str, directory: str | Path, host: Host, class_names: tuple[str, ...] = ()
) -> Listing:
    """List the images of the newest prepared version: `train`, and `validation` and `test`.

    One of the two is the test split; of both, `validation` is the validation split.

    Every record is read once to get its label and to check it for damage. The result is kept in
    the cache.

    Args:
      name: name of the builder.
      directory: folder of prepared data sets, TFDS's `--data_dir`.
      host: the program that loads the images.
      class_names: names of the classes, to list only the test images; training images are then
        listed only if there is no second split. Empty to list both splits.

    Raises:
      UserError: the data set is not prepared, not in array_record format, corrupt, or not one of
        images with labels; or tensorflow-datasets is not installed.
    """
    builder, sources = _open(name, directory)
    features, folder = builder.info.features, Path(builder.data_dir)
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(
            f"{name} is not a data set of images and labels: it has {', '.join(features)}"
        )
    if "train" not in sources:
        raise UserError(f"{name} has no split named train, but {', '.join(sources)}")
    height, width, channels = features["image"].shape
    size, channels = height if height == width and height else 0, 1 if channels == 1 else 3
    names = tuple(features["label"].names)

    def records(split) -> Records:
        labels, bad = _check_all(sources[split], folder, split, len(names), host)
        rows = np.arange(len(labels))
        where = f"{folder}, {split}"
        return Records(sources[split], where, rows, labels, channels, size, bad)

    def labelled(split) -> bool:
        first = (sources[split][i] for i in range(min(20, len(sources.get(split, ())))))
        return any(0 <= int(record["label"]) < len(names) for record in first)

    train = None if class_names else records("train")
    others: list[Any] = []
    for split in ("test", "validation"):
        # A split without any good label is skipped: the images of ImageNet's `test` have none.
        if split == "test" and "validation" in sources and not labelled(split):
            continue  # without reading all of it
        if split in sources and len((second := records(split)).faults) < len(second.labels):
            others.append(second)
        if others and class_names:
            break
    if not others:
        return Listing(train or records("train"), None, names)
    return Listing(train, others[0], names, val=others[1] if others[1:] else None)


def _open(name, directory):
    """Return the builder, and its data sources by split, with images left encoded."""
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name):
        raise UserError(
            f"data.name is 'tfds:{name}', allowed: tfds:NAME, with a config and a version as in "
            "tfds:NAME/CONFIG:1.*.*"
        )
    if not is_prepared(name, directory):
        base = name.partition(":")[0]
        prepared = sorted(Path(directory).glob(f"{base}/*/*/dataset_info.json"))
        if configs := sorted({info.parent.parent.name for info in prepared}):
            raise UserError(
                f"{base} is prepared with configs: let data.name be one of "
                f"{', '.join(f'tfds:{base}/{config}' for config in configs)}"
            )
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
    except Exception as error:  # the readers raise exceptions of many types for damaged files
        raise UserError(f"{info.parent} cannot be read: {error}") from error


def _check_all(source, folder: Path, split, classes: int, host) -> tuple[np.ndarray, dict]:
    """Return the label of every record (0 if damaged), and index → reason for damaged ones."""
    key = hashlib.sha256(f"records {split}".encode())
    for file in sorted(folder.iterdir()):
        key.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    key.update((folder / "dataset_info.json").read_bytes())

    def check(i):
        try:
            record = source[i]
        except Exception as error:  # array_record raises exceptions of many types
            return 0, f"its record is damaged: {' '.join(str(error).split())}"
        if not 0 <= record["label"] < classes:
            return 0, f"its label is {record['label']}"
        return record["label"], faults.fault(io.BytesIO(record["image"]))

    def make():
        count = len(source)
        progress = host.progress(f"reading {split} labels", count)
        with ThreadPoolExecutor() as pool, progress as advance:
            labels, bad = np.zeros(count, np.int32), {}
            for i, (label, why) in enumerate(pool.map(check, range(count))):
                advance()
                labels[i] = label
                if why:
                    bad[i] = why
        return {"labels": labels} | faults.to_arrays(bad)

    arrays = cached(host.folder, key.hexdigest(), make)
    return arrays["labels"], faults.from_arrays(arrays)
