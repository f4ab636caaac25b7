"""IDX files: MNIST and its relatives, under the names that they are published and unpacked with."""

import gzip
import os
import re
import struct

import numpy as np
import pytest

import orc_jax
from configs import fashion_mnist
from orc_jax import data
from orc_jax.data import idx, preprocessing
from orc_jax.errors import UserError
from orc_jax.prepare import prepare

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (20, 6, 5)), "test": RNG.integers(0, 256, (8, 6, 5))}
LABELS = {"train": np.arange(20) % 10, "test": np.arange(8)}


def write(path, array, code=0x08):
    """An array as an IDX file, compressed if its name says so."""
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = head + array.astype({0x08: np.uint8, 0x0C: ">i4"}[code]).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_set(folder, names="{split}-{part}-idx{dims}-ubyte.gz", test="t10k", labels=LABELS):
    """The four files of a set."""
    for split, name in (("train", "train"), ("test", test)):
        for part, array, dims in (("images", IMAGES[split], 3), ("labels", labels[split], 1)):
            write(folder / names.format(split=name, part=part, dims=dims), array)
    return folder


def config_of(name, folder):
    config = fashion_mnist.get_config("ind")
    config.data.name, config.data.dir = name, str(folder)
    return config


@pytest.mark.parametrize(
    "name, folder, names, test",
    [
        ("mnist", "", "{split}-{part}-idx{dims}-ubyte.gz", "t10k"),
        ("kmnist", "", "{split}-{part}-idx{dims}-ubyte", "t10k"),
        ("idx", "", "{split}-{part}.idx{dims}-ubyte", "t10k"),
        ("idx", "", "{split}-{part}-idx{dims}-ubyte.gz", "test"),
        ("mnist", "MNIST/raw", "{split}-{part}-idx{dims}-ubyte", "t10k"),
        ("fashion_mnist", "FashionMNIST/raw", "{split}-{part}-idx{dims}-ubyte", "t10k"),
        ("kmnist", "kmnist", "{split}-{part}-idx{dims}-ubyte.gz", "t10k"),
    ],
)
def test_files_under_the_usual_names(tmp_path, name, folder, names, test):
    write_set(tmp_path / folder, names, test)
    config = config_of(name, tmp_path)
    found = data.load(config)
    for split in ("train", "test"):
        images, labels = getattr(found, split)
        np.testing.assert_array_equal(images, IMAGES[split][..., None])
        np.testing.assert_array_equal(labels, LABELS[split])
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert found.class_names == idx.CLASSES.get(name, tuple("0123456789"))
    for path in (tmp_path / folder).glob("train-images*"):
        path.write_bytes(b"")  # evaluation does not read them
    images = preprocessing.Preprocessing((28, 28, 1), 0, np.zeros(1), np.ones(1))
    tested = data.load_test(config, found.class_names, images, False)
    assert tested.train is None
    np.testing.assert_array_equal(tested.test.images, found.test.images)


def test_a_folder_that_names_the_set_comes_before_files_of_the_same_names(tmp_path):
    write_set(tmp_path / "KMNIST" / "raw")
    write_set(tmp_path, labels={split: 9 - labels for split, labels in LABELS.items()})
    found = data.load(config_of("kmnist", tmp_path))
    np.testing.assert_array_equal(found.test.labels, LABELS["test"])


def test_emnist_is_turned_upright_and_its_sets_are_told_apart(tmp_path):
    """Its letters have labels from 1, and all of its sets come in one folder."""
    letters = {split: labels % 3 + 1 for split, labels in LABELS.items()}
    write_set(tmp_path, "emnist-letters-{split}-{part}-idx{dims}-ubyte.gz", "test", letters)
    write_set(tmp_path, "emnist-digits-{split}-{part}-idx{dims}-ubyte.gz", "test")
    with pytest.raises(UserError, match=r"several data sets: .*emnist-digits, .*emnist-letters"):
        data.load(config_of("idx", tmp_path))
    found = data.load(config_of("idx", tmp_path / "emnist-letters"))
    assert found.class_names == ("1", "2", "3")
    np.testing.assert_array_equal(found.train.labels, LABELS["train"] % 3)
    np.testing.assert_array_equal(found.train.images[..., 0], IMAGES["train"].swapaxes(1, 2))


def test_qmnists_labels_have_further_columns(tmp_path):
    write_set(tmp_path, "qmnist-{split}-{part}-idx{dims}-ubyte.gz", "test")
    for split, labels in LABELS.items():
        (tmp_path / f"qmnist-{split}-labels-idx1-ubyte.gz").unlink()
        columns = np.stack([labels, labels + 1000], axis=1)
        write(tmp_path / f"qmnist-{split}-labels-idx2-int.gz", columns, code=0x0C)
    found = data.load(config_of("mnist", tmp_path))
    np.testing.assert_array_equal(found.test.labels, LABELS["test"])


def test_what_is_wrong_with_the_files(tmp_path):
    with pytest.raises(UserError, match=r"mnist is not in .*none: put train-images-idx3-ubyte.gz"):
        data.load(config_of("mnist", tmp_path / "none"))
    write_set(tmp_path)
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for content, message in (
        (whole[:-20], "cannot be read"),
        (b"hello, hello", "is not an IDX file"),
        (gzip.decompress(whole)[:-1], "truncated or corrupt: 255 bytes, expected 256"),
    ):
        images.write_bytes(content)
        with pytest.raises(UserError, match=f"{re.escape(images.name)} .*{message}"):
            data.load(config_of("mnist", tmp_path))
    write(images, IMAGES["test"][:5])
    with pytest.raises(UserError, match=r"has 5 images, .*t10k-labels-idx1-ubyte\.gz 8 labels"):
        data.load(config_of("mnist", tmp_path))
    write(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(5) + 8)
    with pytest.raises(UserError, match=r"t10k-labels.* has labels of no class: 10, 11, 12"):
        data.load(config_of("mnist", tmp_path))
    write(tmp_path / "t10k-labels-idx1-ubyte.gz", LABELS["test"])
    write(images, IMAGES["test"][:, 0])
    with pytest.raises(UserError, match=r"images.* is uint8 \[8, 5\], images are bytes"):
        data.load(config_of("idx", tmp_path))


@pytest.mark.skipif(
    not idx.INSTALLED["fashion_mnist"].exists() and "CI" not in os.environ,
    reason="needs Debian's dataset-fashion-mnist",
)
def test_the_real_fashion_mnist_is_found_and_learned(tmp_path):
    config = fashion_mnist.get_config("ind:resnet8")
    config.data.dir = str(tmp_path)  # there is nothing
    setup = prepare(config)
    assert (len(setup.train_split.labels), len(setup.test_split.labels)) == (60_000, 10_000)
    assert setup.dataset.class_names[9] == "Ankle boot"
    assert setup.images.mean == pytest.approx([0.2860], abs=1e-4)
    assert setup.images.std == pytest.approx([0.3530], abs=1e-4)
    config.data.train_images, config.epochs, config.batch_size = 1000, 2, 50
    config.peers[0].model = "tiny_wide"
    result = orc_jax.train(config, tmp_path / "run")
    assert result.metrics["step"] == 40 and result.metrics["test"]["top1"][0] > 25  # chance is 10
