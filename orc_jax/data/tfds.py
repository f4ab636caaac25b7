"""Data sets prepared by TensorFlow Datasets in array_record form, read without TensorFlow."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from orc_jax.data import Dataset, Images, hold_out
from orc_jax.data.decode import fit, fits_memory
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


def load(name: str, directory: str | Path, data=None) -> Dataset:
    """Decodes the newest version prepared there: `train`, and `test` or `validation`.

    Args:
      name: of the builder.
      directory: `--data_dir` of the preparation.
      data: the `size`, `val_share` and `memory` of `config.data`; None if all images have one
        size and there is a test split.

    Raises:
      UserError: not prepared, prepared in another form, corrupt, not images with labels, or
        tensorflow-datasets is missing.
    """
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
        builder = tfds.builder_from_directory(info.parent)
        features, splits = builder.info.features, list(builder.info.splits)
    except Exception as error:
        # The readers raise many kinds for damaged files.
        raise UserError(f"{info.parent} cannot be read: {error}") from error
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(f"{name} is no data set of images and labels: it has {', '.join(features)}")
    if "train" not in splits:
        raise UserError(f"{name} has no split named train, but {', '.join(splits)}")
    second = next(
        (s for s in ("test", "validation") if s in splits and _labelled(builder, s)), None
    )
    if data and data.size:
        count = sum(builder.info.splits[split].num_examples for split in {"train", second} - {None})
        if not fits_memory(count, data.size, data.memory):
            raise UserError(
                f"{count} images of {data.size}×{data.size} do not fit data.memory, {data.memory} "
                "of the device's: choose a smaller data.size, or write them to a folder"
            )

    def read(split) -> Images:
        try:
            rows = builder.as_data_source(split=split)
            pairs = [(_fitted(row["image"], data), row["label"]) for row in rows]
            images, labels = zip(*pairs, strict=True)
        except Exception as error:
            raise UserError(f"{info.parent} cannot be read: {error}") from error
        if len(sizes := {image.shape for image in images}) > 1:
            one, other = sorted(sizes)[:2]
            raise UserError(
                f"the images of {name} are not of one size (one is {one}, another {other}): choose "
                "one, e.g. --config.data.size=64"
            )
        return Images(np.stack(images), np.array(labels, np.int32))

    train, names = read("train"), tuple(features["label"].names)
    if second:
        return Dataset(train, read(second), names)
    return Dataset(*hold_out(train, data.val_share, seed=0), names)


def _labelled(builder, split) -> bool:
    """Whether its first image has a class; ImageNet's test split has none."""
    try:
        return builder.as_data_source(split=split)[0]["label"] >= 0
    except Exception as error:
        raise UserError(f"{builder.data_dir} cannot be read: {error}") from error


def _fitted(image, data):
    """[H, W, channels] uint8, scaled and cropped if a size is asked for."""
    if not data or not data.size:
        return image
    channels = image.shape[-1]
    fitted = fit(Image.fromarray(image[..., 0] if channels == 1 else image), data.size)
    return np.asarray(fitted).reshape(data.size, data.size, channels)
