"""Data sets prepared by TensorFlow Datasets in array_record form, read without TensorFlow."""

import json
import re
from pathlib import Path

import numpy as np

from orc_jax.data import Dataset, Images
from orc_jax.errors import UserError


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


def load(name: str, directory: str | Path) -> Dataset:
    """Decodes the splits train and test of the newest version prepared there.

    Raises:
      UserError: prepared in another form, corrupt, or tensorflow-datasets is missing.
    """
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

    def split(which) -> Images:
        rows = list(builder.as_data_source(split=which))
        images = np.stack([row["image"] for row in rows])
        return Images(images, np.array([row["label"] for row in rows], np.int32))

    try:
        builder = tfds.builder_from_directory(info.parent)
        names = tuple(builder.info.features["label"].names)
        return Dataset(split("train"), split("test"), names)
    except Exception as error:
        # The readers raise many kinds for damaged files.
        raise UserError(f"{info.parent} cannot be read: {error}") from error
