"""Images read while training: order, exact resumption, crops, evaluation, faults."""

import itertools
import os
import signal
import time
from collections import Counter

import jax
import numpy as np
import pytest
from conftest import assert_trees_equal, load_data, tiny_config
from PIL import Image
from test_folder import picture, save

import orc_jax
from orc_jax import config as configs
from orc_jax.data import decode, stream
from orc_jax.errors import UserError
from orc_jax.evaluation import evaluate_split
from orc_jax.loop import training_batches
from orc_jax.prepare import prepare
from orc_jax.runtime import metrics
from orc_jax.state import init_state
from orc_jax.step import compile_steps


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes, of 14 training and 3 validation images each."""
    root = tmp_path_factory.mktemp("stream") / "images"
    for i, name in enumerate("abc"):
        for j in range(14):
            save(root / "train" / name / f"{j:02}.jpg", picture(100 * i + j, (20, 16)), quality=95)
        for j in range(3):
            save(root / "val" / name / f"{j}.png", picture(1000 * i + j, (20, 16)))
    return root


def config_of(root, **changes):
    config = tiny_config(("pixels", "pixels"), "dml")
    config.batch_size, config.eval_batch_size = 8, 4
    config.data.update(
        name="folder", dir=str(root), size=8, memory=0.0, cache=str(root.parent / "cache"), pad=0
    )
    config.data.update(changes)
    return config


def split_of(root, **changes):
    config = config_of(root, **changes)
    files = load_data(config).train
    return stream.OnDisk(files, np.zeros(3), np.ones(3), config.data, Counter())


def test_every_epoch_is_a_permutation_of_its_own():
    orders = [stream.epoch_order(3, epoch, 42) for epoch in range(3)]
    assert all(sorted(order) == list(range(42)) for order in orders)
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()
    np.testing.assert_array_equal(orders[1], stream.epoch_order(3, 1, 42))
    assert (orders[1] != stream.epoch_order(4, 1, 42)).any()


@pytest.mark.parametrize("resized_crop", [False, True])
def test_the_batches_from_a_step_on_are_those_of_the_whole(root, resized_crop):
    """No image twice or skipped, the same crops; two epochs of five steps."""
    split = split_of(root, resized_crop=resized_crop)
    whole = list(stream.training(split, 1, 8, 2, 0))
    assert len(whole) == 10 and whole[0][0].shape == (8, 8, 8, 3)
    for step in (3, 5, 9):
        rest = list(stream.training(split, 1, 8, 2, step))
        assert_trees_equal(whole[step:], rest)
    for epoch in range(2):
        order = stream.epoch_order(1, epoch, 42)[:40]
        labels = np.concatenate([labels for _, labels in whole[5 * epoch : 5 * epoch + 5]])
        np.testing.assert_array_equal(labels, split.files.labels[order])
    if not resized_crop:
        first = split.files.paths[stream.epoch_order(1, 0, 42)[0]]
        np.testing.assert_array_equal(whole[0][0][0], decode.decode(root / first, 8))


def test_processes_give_what_threads_give(root):
    threads = list(stream.training(split_of(root, resized_crop=True), 1, 8, 2, 3))
    processes = list(stream.training(split_of(root, resized_crop=True, workers=2), 1, 8, 2, 3))
    assert_trees_equal(threads, processes)


def test_evaluation_has_every_image_once(root):
    split = split_of(root)
    found = list(stream.evaluation(split, 16))
    assert [images.shape for images, _ in found] == [(16, 8, 8, 3)] * 3
    labels = np.concatenate([labels for _, labels in found])
    np.testing.assert_array_equal(labels, [*split.files.labels, *[stream.NO_LABEL] * 6])
    images = np.concatenate([images for images, _ in found])
    np.testing.assert_array_equal(images[17], decode.decode(root / split.files.paths[17], 8))
    larger = next(stream.evaluation(split_of(root, eval_resize=12), 16))[0]
    expected = decode.decode(root / split.files.paths[0], 8, resize=12)
    np.testing.assert_array_equal(larger[0], expected)
    assert (larger[0] != images[0]).any()


def test_streamed_and_decoded_images_evaluate_to_the_same(root):
    results = []
    for memory in (0.0, 0.5):
        config = config_of(root, memory=memory)
        setup = prepare(config)
        assert isinstance(setup.test_split, stream.OnDisk) == (memory == 0)
        state = init_state(*setup.state_args(), {})
        _, evaluation_step, _ = compile_steps(
            setup.config, setup.group, setup.method, streamed=setup.streamed
        )
        results.append((evaluate_split(setup, evaluation_step, state, setup.test_split), setup))
    (streamed, one), (decoded, other) = results
    np.testing.assert_allclose(one.test_split.mean, other.test_split.mean, rtol=1e-6)
    np.testing.assert_allclose(streamed["loss"], decoded["loss"], rtol=1e-5)
    assert streamed["top1"] == decoded["top1"]


def test_a_run_that_is_stopped_within_an_epoch_goes_on_with_the_next_image(
    root, tmp_path, monkeypatch
):
    config = config_of(root, resized_crop=True, flip=True)
    config.epochs = 3
    full = orc_jax.train(config, tmp_path / "full")
    assert full.finished and len(metrics.read(tmp_path / "full")) == 3

    real = stream.training

    def interrupted(*args):
        for i, batch in enumerate(real(*args)):
            if i == 7:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)  # a thread notes it
            yield batch

    monkeypatch.setattr(stream, "training", interrupted)
    stopped = orc_jax.train(config, tmp_path / "stopped")
    assert not stopped.finished and 5 < int(stopped.state.step) < 10
    monkeypatch.setattr(stream, "training", real)
    resumed = orc_jax.train(config, tmp_path / "stopped")
    assert_trees_equal(jax.device_get(resumed.state), jax.device_get(full.state))
    assert orc_jax.evaluate(tmp_path / "stopped") == resumed.metrics["test"]


def test_evaluation_is_of_the_images_that_were_trained_on(root, tmp_path):
    config = config_of(root)
    config.epochs = 1
    result = orc_jax.train(config, tmp_path / "run")
    with pytest.raises(UserError, match="was trained on other images"):
        copy, _ = copy_with_faults(root, tmp_path)
        (copy / "train" / "a" / "03.jpg").rename(copy / "train" / "a" / "x.txt")
        (copy / "train" / "c" / "00.jpg").rename(copy / "train" / "c" / "x.txt")
        (copy / "val" / "b" / "1.png").rename(copy / "val" / "b" / "x.txt")
        orc_jax.evaluate(tmp_path / "run", data_dir=str(copy))
    assert orc_jax.evaluate(tmp_path / "run") == result.metrics["test"]


def test_one_compilation_for_all_batches(root, tmp_path):
    config = config_of(root)
    setup = prepare(config)
    train_step, evaluation_step, _ = compile_steps(
        setup.config, setup.group, setup.method, streamed=setup.streamed
    )
    state = init_state(*setup.state_args(), {})
    for split, order in itertools.islice(training_batches(setup, 0), 4):
        with jax.transfer_guard("disallow"):
            state = train_step(state, split, order)
    evaluate_split(setup, evaluation_step, state, setup.test_split)
    assert train_step._cache_size() == evaluation_step._cache_size() == 1


def test_random_resized_crops():
    pixels = np.mgrid[0:60, 0:90].transpose(1, 2, 0).astype(np.uint8)
    image = Image.fromarray(np.concatenate([pixels, pixels[..., :1]], axis=-1))
    shares = []
    for seed in range(200):
        crop = stream.random_resized_crop(image, 16, np.random.default_rng(seed)).astype(float)
        assert crop.shape == (16, 16, 3)
        height, width = np.ptp(crop[..., 0]) * 16 / 15, np.ptp(crop[..., 1]) * 16 / 15
        shares.append(height * width / 5400)
        assert 0.6 < width / height < 1.6
    assert min(shares) < 0.15 and max(shares) > 0.8 and 0.4 < np.mean(shares) < 0.6
    again = stream.random_resized_crop(image, 16, np.random.default_rng(0))
    first = stream.random_resized_crop(image, 16, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again)
    narrow = image.resize((4, 90))  # no part of it has an allowed shape
    assert stream.random_resized_crop(narrow, 8, np.random.default_rng(0)).shape == (8, 8, 3)


def test_a_reduced_jpeg_gives_the_crop_of_the_whole(tmp_path):
    save(tmp_path / "large.jpg", picture(0, (40, 30)).resize((800, 600)), quality=95)
    with Image.open(tmp_path / "large.jpg") as image:
        reduced = stream.random_resized_crop(image, 16, np.random.default_rng(1))
        assert image.size != (800, 600)
    with Image.open(tmp_path / "large.jpg") as image:
        whole = stream.random_resized_crop(image.copy(), 16, np.random.default_rng(1))
    assert np.abs(reduced.astype(int) - whole).mean() < 4


def copy_with_faults(root, tmp_path):
    """A copy of the folder with a truncated JPEG and PNG, and a text; their names."""
    for path in root.rglob("*.*"):
        target = tmp_path / "images" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    bad = ["train/a/03.jpg", "val/b/1.png", "train/c/00.jpg"]
    for name in bad[:2]:
        file = tmp_path / "images" / name
        file.write_bytes(file.read_bytes()[:-20])
    (tmp_path / "images" / bad[2]).write_text("hello")
    return tmp_path / "images", bad


def test_a_jpeg_with_much_behind_its_end_is_whole(root, tmp_path):
    copy, _ = copy_with_faults(root, tmp_path)
    file = copy / "train" / "a" / "05.jpg"
    file.write_bytes(file.read_bytes() + bytes(5000))
    with pytest.raises(UserError, match=r"^3 of the images"):
        load_data(config_of(copy))


def test_bad_files_are_found_before_the_first_step(root, tmp_path, capsys):
    copy, bad = copy_with_faults(root, tmp_path)
    for _ in range(2):  # looked at, then from the cache
        with pytest.raises(UserError) as error:
            load_data(config_of(copy))
        assert str(error.value).startswith("3 of the images cannot be decoded")
        assert all(name in str(error.value) for name in bad)
    dataset = load_data(config_of(copy, on_error="skip"))
    assert len(dataset.train.labels) == 40 and len(dataset.test.labels) == 8
    assert not set(bad) & {*dataset.train.paths, *dataset.test.paths}
    assert "left out 3 images" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_spoilt_later_is_named(root, tmp_path, workers):
    copy, _ = copy_with_faults(root, tmp_path)
    split = split_of(copy, on_error="skip")
    split.data.update(on_error="stop", workers=workers)
    for name in split.files.paths:
        (copy / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"images/train/./..\.jpg cannot be decoded"):
        next(stream.training(split, 1, 8, 2, 0))


def test_in_the_place_of_a_file_that_is_spoilt_later_stands_another(root, tmp_path, capfd):
    copy, _ = copy_with_faults(root, tmp_path)
    split = split_of(copy, on_error="skip")
    before, labels = next(stream.training(split, 1, 8, 2, 0))
    order = stream.epoch_order(1, 0, len(split.labels)).tolist()
    for at in (order[0], order[3]):
        split.files.file(at).write_bytes(b"")
    images, replaced = next(stream.training(split, 1, 8, 2, 0))
    np.testing.assert_array_equal(images[1:3], before[1:3])
    for row in (0, 3):
        np.testing.assert_array_equal(images[row], before[row + 1])
        assert replaced[row] == labels[row + 1]
    assert split.passed_over["training"] == 2
    split.files.file(order[1]).write_bytes(b"")  # order[0] is damaged too: two rows, two images
    split.passed_over.clear()
    next(stream.training(split, 1, 8, 2, 0))
    assert split.passed_over["training"] == 3
    own = next(stream.training(split, 1, 8, 2, 0, slice(3, 4)))  # of one process of several
    np.testing.assert_array_equal(own[0][0], before[4])
    assert f"passed over: {split.files.name(order[3])} cannot be decoded" in capfd.readouterr().err
    for at in order[:8]:
        split.files.file(at).write_bytes(b"")
    with pytest.raises(UserError, match="all other images of its batch are damaged"):
        next(stream.training(split, 1, 8, 2, 0))


def test_processes_of_a_run_read_their_own_rows(root):
    """Their parts of every batch are together the batch."""
    split = split_of(root, resized_crop=True)
    parts = [slice(0, 4), slice(4, 8)]
    for whole, *own in (
        [list(stream.training(split, 1, 8, 2, 3, rows)) for rows in (stream.ALL, *parts)],
        [list(stream.evaluation(split, 8, rows)) for rows in (stream.ALL, *parts)],
    ):
        together = [
            [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
            for batches in zip(*own, strict=True)
        ]
        assert_trees_equal([list(batch) for batch in whole], together)


def test_a_run_goes_on_as_it_began_on_a_machine_of_other_memory(root, tmp_path):
    config = config_of(root)
    config.epochs = 1
    first = orc_jax.train(config, tmp_path / "run")
    config.data.memory = 0.5
    again = orc_jax.train(config, tmp_path / "run")
    assert_trees_equal(jax.device_get(again.state), jax.device_get(first.state))


def test_what_streaming_cannot_do(root):
    config = config_of(root)
    config.method = configs.default_config("kdcl").method
    config.method.target = "general"
    with pytest.raises(UserError, match="kdcl keeps images aside"):
        prepare(config)
    with pytest.raises(UserError, match=r"eval_resize is 4, allowed: data.size, 8, or more"):
        prepare(config_of(root, eval_resize=4))
    config = config_of(root, resized_crop=True)
    config.method = configs.default_config("kdcl").method
    with pytest.raises(UserError, match="every peer of kdcl sees other parts of an image"):
        prepare(config)
