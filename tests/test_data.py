"""Data sets: digits, CIFAR archives, TensorFlow Datasets, arrays, and batches of them."""

import io
import pickle
import shutil
import sys
import tarfile
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT, load_data, tiny_config, tiny_data
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from orc_jax import checks, data
from orc_jax import config as configs
from orc_jax.data import batches, cifar, decode, digits, preprocessing, stream, tfds
from orc_jax.errors import UserError
from orc_jax.prepare import prepare


def of_size(size):
    return preprocessing.Preprocessing((size, size, 3), 0, np.zeros(3), np.ones(3))


def test_digits_are_the_real_ones_split_once_and_evenly():
    dataset = digits.load()
    assert dataset.image_shape == (8, 8, 1) and dataset.num_classes == 10
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1437, 360)
    assert dataset.train.images.dtype == np.uint8 and dataset.train.images.max() == 255
    assert np.bincount(dataset.test.labels).min() >= 34
    again = digits.load()
    np.testing.assert_array_equal(again.test.images, dataset.test.images)
    seen = {image.tobytes() for image in dataset.train.images}
    assert sum(image.tobytes() in seen for image in dataset.test.images) <= 1


# --- CIFAR archives, written here in the authors' forms ---


def fake_cifar(fine, per_file=6):
    """(file → images uint8 [n, 3072] and labels) of a small CIFAR."""
    rng = np.random.default_rng(0)
    files = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    classes = 100 if fine else 10
    return {
        file: (
            rng.integers(0, 256, (per_file, 3072), dtype=np.uint8),
            rng.integers(0, classes, per_file),
        )
        for file in files
    }


def write_cifar(root, name, form, unpack):
    """Writes it to `root` as an archive or unpacked; returns the content."""
    fine = name == "cifar100"
    content = fake_cifar(fine)
    names = [f"class{i}" for i in range(100 if fine else 10)]
    files = {}
    for file, (images, labels) in content.items():
        if form == "python":
            key = b"fine_labels" if fine else b"labels"
            files[file] = pickle.dumps({b"data": images, key: labels.tolist()}, protocol=2)
        else:
            coarse = [np.full((len(labels), 1), 7, np.uint8)] if fine else []
            record = [*coarse, labels[:, None].astype(np.uint8), images]
            files[f"{file}.bin"] = np.concatenate(record, axis=1).tobytes()
    if form == "python":
        key = b"fine_label_names" if fine else b"label_names"
        meta = {key: [n.encode() for n in names]}
        files["meta" if fine else "batches.meta"] = pickle.dumps(meta, protocol=2)
    else:
        text = "\n".join(names).encode()
        files["fine_label_names.txt" if fine else "batches.meta.txt"] = text
    folder = {
        ("cifar10", "python"): "cifar-10-batches-py",
        ("cifar10", "binary"): "cifar-10-batches-bin",
        ("cifar100", "python"): "cifar-100-python",
        ("cifar100", "binary"): "cifar-100-binary",
    }[name, form]
    if unpack:
        (root / folder).mkdir()
        for file, raw in files.items():
            (root / folder / file).write_bytes(raw)
    else:
        archive = {"cifar10": f"cifar-10-{form}", "cifar100": f"cifar-100-{form}"}[name]
        with tarfile.open(root / f"{archive}.tar.gz", "w:gz") as tar:
            for file, raw in files.items():
                member = tarfile.TarInfo(f"{folder}/{file}")
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))
    return content


@pytest.mark.parametrize("unpack", [True, False])
@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_every_form(tmp_path, name, form, unpack):
    content = write_cifar(tmp_path, name, form, unpack)
    dataset = cifar.load(name, tmp_path)
    test_file = "test" if name == "cifar100" else "test_batch"
    images, labels = content.pop(test_file)
    np.testing.assert_array_equal(dataset.test.labels, labels)
    np.testing.assert_array_equal(
        dataset.test.images[2, 5, 7], images[2].reshape(3, 32, 32)[:, 5, 7]
    )
    np.testing.assert_array_equal(
        dataset.train.labels, np.concatenate([labels for _, labels in content.values()])
    )
    assert dataset.class_names[3] == "class3"
    assert dataset.num_classes == (100 if name == "cifar100" else 10)


@pytest.mark.parametrize("name, file", [("cifar10", "data_batch_3"), ("cifar100", "train")])
def test_the_test_images_of_cifar_need_no_training_images(tmp_path, name, file):
    write_cifar(tmp_path, name, "python", unpack=True)
    config = prepared_config(tmp_path, name, dir=str(tmp_path))
    whole = data.load(config)
    next(tmp_path.rglob(file)).unlink()
    dataset = data.load_test(config, whole.class_names, of_size(32), False)
    assert dataset.train is None and dataset.class_names == whole.class_names
    np.testing.assert_array_equal(dataset.test.images, whole.test.images)


def test_truncated_and_corrupt_archives_are_named(tmp_path):
    write_cifar(tmp_path, "cifar10", "python", unpack=False)
    archive = tmp_path / "cifar-10-python.tar.gz"
    raw = archive.read_bytes()
    for damaged in (
        raw[: len(raw) // 2],
        raw[:-20],
        b"",
        b"not an archive",
        raw[:2000] + raw[2100:],
    ):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz.* is truncated or corrupt"):
            cifar.load("cifar10", tmp_path)


@pytest.mark.parametrize("form, file", [("python", "train"), ("binary", "train.bin")])
def test_truncated_and_missing_files_are_named(tmp_path, form, file):
    write_cifar(tmp_path, "cifar100", form, unpack=True)
    path = tmp_path / f"cifar-100-{form}" / file
    raw = path.read_bytes()
    for damaged in (raw[:-1], raw[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{file} is truncated or corrupt"):
            cifar.load("cifar100", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{file} cannot be read"):
        cifar.load("cifar100", tmp_path)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar100", "python", unpack=True)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({b"data": Malicious()}))
    with pytest.raises(UserError, match="train is truncated or corrupt: it asks for"):
        cifar.load("cifar100", tmp_path)


def test_absent_cifar_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as error:
        cifar.load("cifar100", tmp_path)
    for part in ("cifar-100-python.tar.gz", "tfds build cifar100", "--file_format=array_record"):
        assert part in str(error.value)


def prepared_config(tmp_path, name, **changes):
    config = configs.default_config()
    config.data.update(name=name, dir=str(ROOT / "tests" / "prepared"), cache=str(tmp_path))
    config.data.update(changes)
    return config


def test_tfds_reads_array_record_without_tensorflow(tmp_path):
    dataset = load_data(prepared_config(tmp_path, "cifar100"))
    assert "tensorflow" not in sys.modules
    assert len(dataset.train.labels) == 100 and len(dataset.test.labels) == 20
    assert dataset.num_classes == 100 and dataset.image_shape == (32, 32, 3)
    # Image i of that set is the number i, its label too.
    np.testing.assert_array_equal(dataset.train.images[:, 3, 4, 1], dataset.train.labels)
    assert sorted(dataset.train.labels) == list(range(100))


def test_any_builder_of_tfds_by_its_name(tmp_path):
    config = prepared_config(tmp_path, "tfds:cifar100", size=16)
    config.peers = tiny_config().peers
    checks.check(config, 1)
    dataset = load_data(config)
    assert dataset.image_shape == (16, 16, 3) and len(dataset.train.labels) == 100
    np.testing.assert_array_equal(dataset.train.images[:, 3, 4, 1], dataset.train.labels)
    config.data.name = "tfds:beans"
    with pytest.raises(UserError, match=r"beans is not in .*tfds build beans"):
        load_data(config)


def test_tfds_is_streamed_where_it_does_not_fit(tmp_path):
    config = prepared_config(tmp_path, "tfds:cifar100", size=32, memory=0.0)
    dataset = load_data(config)
    whole = load_data(prepared_config(tmp_path, "tfds:cifar100"))
    assert whole.train.checksums()["labels"][0] == [100]
    for workers in (0, 2):
        config.data.workers = workers
        split = stream.OnDisk(dataset.train, np.zeros(3), np.ones(3), config.data, Counter())
        images, labels = next(stream.training(split, 1, 10, 1, 3))
        order = stream.epoch_order(1, 0, 100)[30:40]
        np.testing.assert_array_equal(images, whole.train.images[order])
        np.testing.assert_array_equal(labels, whole.train.labels[order])
    half = dataset.train.select(np.arange(100) % 2 == 0)
    assert half.name(1).endswith("prepared/cifar100/3.0.2, train, record 2")
    assert half.checksums() != dataset.train.checksums()


def png(values) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_names_of_tfds_with_config_and_version(tmp_path):
    for version in ("1.2.0", "1.10.0", "2.0.0"):
        folder = tmp_path / "imagenette" / "320px-v2" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "imagenette" / "full" / "1.0.0").mkdir(parents=True)
    (tmp_path / "imagenette" / "full" / "1.0.0" / "dataset_info.json").write_text("{}")

    def newest(name):
        return tfds._versions(name, tmp_path)[-1].parent.name

    assert newest("imagenette/320px-v2") == "2.0.0"
    assert newest("imagenette/320px-v2:1.*") == newest("imagenette/320px-v2:1.10.0") == "1.10.0"
    assert not tfds.is_prepared("imagenette/320px-v2:3.*", tmp_path)
    both = "tfds:imagenette/320px-v2, tfds:imagenette/full"
    with pytest.raises(UserError, match=f"with configs: let data.name be one of {both}"):
        tfds._open("imagenette", tmp_path)
    with pytest.raises(UserError, match="prepared as None, which only TensorFlow reads"):
        tfds._open("imagenette/full:1.0.0", tmp_path)
    for wrong in ("/x", "a b", "x/y/z", "x:latest", "../x"):
        with pytest.raises(UserError, match="allowed: tfds:NAME, with a config and a version"):
            tfds._open(wrong, tmp_path)


def fake_builder(monkeypatch, tmp_path, names, **splits):
    """A prepared data set of grey 8×8 images: split → labels, None for a damaged image."""
    sources = {
        split: [
            {"image": png(np.full((8, 8), i)) if label is not None else b"x", "label": label or 0}
            for i, label in enumerate(labels)
        ]
        for split, labels in splits.items()
    }
    folder = tmp_path / "prepared"
    folder.mkdir(exist_ok=True)
    (folder / "dataset_info.json").write_text("{}")
    label = SimpleNamespace(names=names)
    features = {"image": SimpleNamespace(shape=(8, 8, 1)), "label": label}
    builder = SimpleNamespace(info=SimpleNamespace(features=features), data_dir=folder)
    monkeypatch.setattr(tfds, "_open", lambda name, directory: (builder, sources))
    return sources


def fake_config(tmp_path, **changes):
    return prepared_config(tmp_path / "cache", "tfds:fake", **changes)


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_damaged_images_of_tfds_are_listed_before_the_first_step(
    monkeypatch, tmp_path, memory, capsys
):
    fake_builder(monkeypatch, tmp_path, "ab", train=[0, None, 1, 7, 1], test=[0, 1])
    with pytest.raises(UserError) as error:
        load_data(fake_config(tmp_path, memory=memory))
    assert str(error.value).startswith("2 of the images cannot be decoded")
    assert f"{tmp_path}/prepared, train, record 1 (not an image that Pillow" in str(error.value)
    assert "record 3 (its label is 7)" in str(error.value)
    dataset = load_data(fake_config(tmp_path, memory=memory, on_error="skip"))
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.image_shape == (8, 8, 1)
    assert "left out 2 images" in capsys.readouterr().out


def test_the_other_splits_of_tfds(monkeypatch, tmp_path):
    """Not a split without labels; of two, one validates; a class that no image has is no fault."""
    hidden = {"train": [0, 1] * 5, "test": [-1, -1, -1]}
    for splits, count in (
        ({"train": [0, 1], "test": [0], "validation": [1, 1]}, 1),
        ({"train": [0, 1], "test": [0, 0, 1]}, 3),
        (hidden | {"validation": [0] * 4}, 4),
        (hidden, 2),
        ({"train": [0, 1] * 5}, 2),
    ):
        fake_builder(monkeypatch, tmp_path, "abc", **splits)
        dataset = load_data(fake_config(tmp_path, cache=str(tmp_path / f"{len(splits)}{count}")))
        assert len(dataset.test.labels) == count and dataset.class_names == ("a", "b", "c")
        assert (dataset.val is None) == (count != 1)


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_the_test_images_of_tfds_need_no_training_images(monkeypatch, tmp_path, memory):
    sources = fake_builder(monkeypatch, tmp_path, "ab", train=[0, 1], test=[0, 1, 1])
    config = fake_config(tmp_path, memory=memory)
    whole = load_data(config)
    sources["train"] = None
    dataset = data.load_test(config, ("a", "b"), of_size(8), whole.streamed)
    assert dataset.train is None and whole.streamed == (memory == 0)
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.test.checksums() == whole.test.checksums()


def test_labels_of_tfds_are_read_once(monkeypatch, tmp_path):
    sources = fake_builder(monkeypatch, tmp_path, "ab", train=[0, 1], test=[0, 1])
    first = load_data(fake_config(tmp_path, memory=0.0))
    for record in (*sources["train"], *sources["test"]):
        record["label"] = 1
    again = load_data(fake_config(tmp_path, memory=0.0))
    np.testing.assert_array_equal(first.train.labels, again.train.labels)


def test_grey_images_of_tfds_have_one_channel():
    source = [{"image": png(np.arange(64).reshape(8, 8))}, {"image": png(np.eye(8))[:40]}]
    records = tfds.Records(source, "mnist, train", np.arange(2), np.zeros(2, np.int32), 1, 8)
    decoded = decode.decode(records.file(0), 8, channels=1)
    np.testing.assert_array_equal(decoded[..., 0], np.arange(64).reshape(8, 8))
    settings = configs.default_config().data
    split = stream.OnDisk(records, np.zeros(1), np.ones(1), settings, Counter())
    with pytest.raises(UserError, match=r"mnist, train, record 1 cannot be decoded"):
        list(stream.evaluation(split, 2))
    settings.on_error = "skip"
    ((images, labels),) = stream.evaluation(split, 2)
    assert images.shape == (2, 8, 8, 1) and labels.tolist() == [0, stream.NO_LABEL]


def test_tfds_errors(tmp_path, monkeypatch):
    config = prepared_config(tmp_path, "tfds:cifar100", dir=str(tmp_path))
    info = tmp_path / "cifar100" / "3.0.2" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(UserError, match=r"prepared as tfrecord.*tfds build cifar100"):
        load_data(config)
    for text in ("{", "[]"):
        info.write_text(text)
        with pytest.raises(UserError, match="corrupt"):
            load_data(config)
    config.data.name = "tfds:/"
    with pytest.raises(UserError, match=r"data\.name is 'tfds:/', allowed: tfds:NAME"):
        load_data(config)
    config.data.name = "tfds:cifar100"
    shutil.copytree(ROOT / "tests/prepared/cifar100/3.0.2", info.parent, dirs_exist_ok=True)
    (record,) = info.parent.glob("*train.array_record*")
    record.write_bytes(record.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"3\.0\.2(, train, record 0)? .*(cannot be read|damaged)"):
        load_data(config)
    for module in ("array_record", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"pip install 'orc-jax\[tfds\]'"):
            load_data(prepared_config(tmp_path, "tfds:cifar100"))


def test_unknown_data_set():
    with pytest.raises(UserError, match="did you mean 'cifar100'"):
        data.load(ConfigDict({"data": {"name": "cifar-100", "dir": ""}}))


# --- Batches ---


def split_of(seed=0, n=10, size=6, channels=2):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    train = data.from_arrays((images, np.arange(n) % 3) * 2).train
    return images, jax.device_put(batches.OnDevice(*train, *batches.scale(images)))


def test_normalised_by_the_training_images():
    images, split = split_of()
    batch, _, _ = batches.evaluation_batch(split, 0, 10)
    np.testing.assert_allclose(batch.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(batch.std(axis=(0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(split.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_does_no_harm():
    for level in range(0, 256, 5):
        images = np.full((4, 6, 6, 1), level, np.uint8)
        split = batches.OnDevice(images, np.arange(4), *batches.scale(images))
        np.testing.assert_allclose(batches.normalise(split, images), 0, atol=1e-5)


def test_held_out_images_are_a_share_of_every_class():
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    train = data.Images(images, np.repeat([0, 1, 2], [10, 20, 30]).astype(np.int32))
    rest, aside = data.hold_out(train, 0.1, seed=0)
    assert np.bincount(aside.labels).tolist() == [1, 2, 3]
    both = np.concatenate([rest.images, aside.images]).ravel()
    assert sorted(both) == list(range(60))
    assert np.array_equal(data.hold_out(train, 0.1, seed=0)[1].images, aside.images)
    assert data.hold_out(train, 0.0, seed=0)[1] is None


def test_few_training_images_are_of_every_class_alike():
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    train = data.Images(images, np.repeat([0, 1, 2], [10, 20, 30]).astype(np.int32))
    some = data.subsample(train, 12, seed=0)
    assert np.bincount(some.labels).tolist() == [2, 4, 6]
    assert all(train.labels[i] == y for i, y in zip(some.images.ravel(), some.labels, strict=True))
    assert np.array_equal(data.subsample(train, 12, seed=0).images, some.images)
    assert not np.array_equal(data.subsample(train, 12, seed=1).images, some.images)
    for count in range(3, 61):
        counts = np.bincount(data.subsample(train, count, seed=0).labels)
        assert counts.sum() == count and np.abs(counts - count * np.arange(1, 4) / 6).max() < 1.5
    assert data.subsample(train, 0, seed=0) is train
    with pytest.raises(UserError, match="train_images is 61, allowed: at most the 60 that there"):
        data.subsample(train, 61, seed=0)


def test_a_run_sees_few_images_and_the_whole_test_split():
    config = tiny_config()
    config.data.train_images = 20
    setup = prepare(config, tiny_data())
    assert len(setup.train_split.labels) == 20 and setup.steps_per_epoch == 1
    assert np.bincount(setup.train_split.labels).tolist() == [4] * 5
    assert len(setup.test_split.labels) == 21


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3))
def test_epoch_order_is_a_fresh_permutation(num_images, batch_size, epoch):
    batch_size = min(batch_size, num_images)
    key = jax.random.key(0)
    order = np.array(batches.epoch_order(key, epoch, num_images, batch_size))
    assert order.shape == (num_images // batch_size, batch_size)
    assert len(set(order.ravel())) == order.size and set(order.ravel()) <= set(range(num_images))
    np.testing.assert_array_equal(order, batches.epoch_order(key, epoch, num_images, batch_size))
    if order.size > 20:
        other = np.array(batches.epoch_order(key, epoch + 1, num_images, batch_size))
        assert (other != order).any()


def test_evaluation_counts_every_image_once():
    _, split = split_of(n=10)
    seen = []
    for index in range(3):
        images, labels, counts = batches.evaluation_batch(split, index, 4)
        assert images.shape[0] == 4
        seen += np.array(labels)[np.array(counts)].tolist()
    assert seen == np.array(split.labels).tolist()


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((3, 4, 4)), np.zeros(3, int), "must be uint8"),
        (np.zeros((3, 16), np.uint8), np.zeros(3, int), "must be uint8"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(2, int), "3 integers"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3), "3 integers"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, -1, 2]), "count from 0"),
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), "no train images"),
        (np.ones((3, 4, 4)), np.zeros(3, int), r"not float64: np.uint8\(\(images \* 255\)\.round"),
        (np.full((3, 4, 4), 9.0), np.zeros(3, int), r"not float64: np.uint8\(\(images\)\.round"),
        (-np.ones((3, 4, 4)), np.zeros(3, int), "as they were before they were normalised"),
        (np.full((3, 4, 4), np.nan), np.zeros(3, int), "before they were normalised"),
        (np.zeros((3, 4, 4), np.uint8), np.eye(3)[[0, 1, 1]], r"one-hot: pass labels\.argmax"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 2**40]), "one is 1099511627776"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 10**6]), "none is 2 .* is 1000000"),
        (
            np.zeros((3, 4, 4), np.uint8),
            np.array([1, 2, 1]),
            "none is 0 .the largest is 2.*inverse",
        ),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 5, 5]), "none is 1 .the largest is 5"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 0, 0]), "all train labels are 0: .*one class"),
    ],
)
def test_arrays_of_another_form(images, labels, message):
    good = (np.zeros((2, 4, 4), np.uint8), np.array([0, 1]))
    data.from_arrays((*good, *good))
    with pytest.raises(UserError, match=message):
        data.from_arrays((images, labels, *good))


def test_test_labels_of_no_class():
    train = (np.zeros((2, 4, 4), np.uint8), np.array([0, 1]))
    with pytest.raises(UserError, match="test labels have the class 2, which train labels do not"):
        data.from_arrays((*train, train[0], np.array([2, 1])))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint8])
def test_labels_and_images_of_other_types_and_layouts(dtype):
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5)
    labels = np.array([0, 1]).astype(dtype)
    found = data.from_arrays((images.transpose(0, 2, 3, 1), labels) * 2)
    np.testing.assert_array_equal(found.train.images[1, 2, 3], images[1, :, 2, 3])
    assert found.train.labels.tolist() == [0, 1] and found.class_names == ("0", "1")
