"""Validation images choose the best checkpoint; the test images are seen once, at the end."""

import json
import re

import numpy as np
import pytest
from conftest import tiny_config, tiny_data
from test_folder import picture, save

import orc_jax
from orc_jax.data import folder
from orc_jax.errors import UserError
from orc_jax.prepare import prepare
from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoints import Checkpoints
from orc_jax.trained.networks import from_run

DATA = tiny_data(train=80)


def config_of(share=0.25, **data):
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = 3
    config.data.update(val_share=share, **data)
    return config


def test_images_are_held_out_by_the_seed_and_each_class_gives_its_share():
    config = config_of()
    found = {}
    for seed in (0, 0, 1):
        config.seed = seed
        setup = prepare(config, DATA)
        train, val = setup.dataset.train, setup.dataset.val
        assert np.bincount(val.labels).tolist() == [4] * 5
        assert np.bincount(train.labels).tolist() == [12] * 5
        both = np.concatenate([train.images, val.images]).reshape(80, -1)
        assert sorted(both.tolist()) == sorted(DATA[0].reshape(80, -1).tolist())
        found.setdefault(seed, []).append(val.images)
    np.testing.assert_array_equal(*found[0])
    assert not np.array_equal(found[0][0], found[1][0])
    # The number of training images is of those that remain.
    few = prepare(config_of(train_images=30), DATA).dataset
    assert (len(few.train.labels), len(few.val.labels)) == (30, 20)
    assert prepare(config_of(share=0.0), DATA).val_split is None
    with pytest.raises(UserError, match=r"data.val_share is 1.0, allowed: 0, and below 1"):
        prepare(config_of(share=1.0), DATA)


def test_the_test_images_choose_nothing(tmp_path, capsys):
    """Curves and the best checkpoint are the same whatever the test images are."""
    orc_jax.train(config_of(), tmp_path / "run", DATA)
    said = capsys.readouterr().out
    other = (*DATA[:2], 255 - DATA[2], DATA[3][::-1])
    orc_jax.train(config_of(), tmp_path / "other", other)
    first, second = (metrics.read(tmp_path / name) for name in ("run", "other"))
    assert ["val" in record for record in first] == [True] * 3
    assert ["test" in record for record in first] == [False, False, True]
    assert [record["val"] for record in first] == [record["val"] for record in second]
    assert first[-1]["test"] != second[-1]["test"]
    with Checkpoints(tmp_path / "run") as one, Checkpoints(tmp_path / "other") as two:
        best = one.step("best")
        assert best == two.step("best")
    scores = [max(record["val"]["top1"]) for record in first]
    assert first[int(np.argmax(scores))]["step"] == best
    assert "(60 training, 20 validation, 21 test images)" in re.sub(r"\s+", " ", said)
    assert f"the best checkpoint is that of step {best}, chosen by 20 validation images" in said
    assert said.count("test top-1") == 1 and said.count("val top-1") == 3
    assert orc_jax.evaluate(tmp_path / "run", data=DATA) == first[-1]["test"]
    # The peer to export is chosen alike; within the run there are no test numbers yet.
    chosen = from_run(tmp_path / "run")
    assert chosen.peer == int(np.argmax(first[-1]["val"]["top1"]))
    assert chosen.scores["split"] == "test"
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(first[-1] | {"test": None}) + "\n")
    assert from_run(tmp_path / "run").scores["split"] == "val"
    assert json.loads((tmp_path / "run" / "data.json").read_text()).keys() >= {"val_images"}
    # The run goes on with the same images alone.
    with pytest.raises(UserError, match=r"val_share: 0\.25 → 0\.5"):
        orc_jax.train(config_of(0.5), tmp_path / "run", DATA)


def test_without_validation_images_it_is_said_that_the_test_images_choose(tmp_path, capsys):
    orc_jax.train(config_of(0.0), tmp_path, DATA)
    said = " ".join(capsys.readouterr().out.split())
    assert "chosen by test images (--config.data.val_share=0.1 holds out training images" in said


@pytest.mark.parametrize("names", [("val", "test"), ("valid", "test")])
def test_a_folder_with_both_splits_validates_on_one(tmp_path, names):
    for split, count in (("train", 8), (names[0], 2), (names[1], 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                seed = 100 * len(split) + 10 * (name == "cat") + i
                save(tmp_path / "images" / split / name / f"{i}.png", picture(seed))
    config = config_of(name="folder", dir=str(tmp_path / "images"), size=8)
    config.data.cache, config.batch_size = str(tmp_path / "cache"), 8
    for memory in (0.5, 0.0):
        config.data.memory = memory
        config.data.val_share = 0.0
        setup = prepare(config)
        assert [len(s.labels) for s in (setup.train_split, setup.val_split, setup.test_split)] == [
            16,
            4,
            6,
        ]
        config.epochs = 1
        result = orc_jax.train(config, tmp_path / f"run{memory}")
        assert result.metrics["val"] != result.metrics["test"]
        again = orc_jax.evaluate(tmp_path / f"run{memory}")
        assert again == result.metrics["test"]
    config.data.val_share = 0.5
    assert len(prepare(config).val_split.labels) == 4  # the folder's own
    test_alone = folder.find(tmp_path / "images", ("cat", "dog"))
    assert test_alone.train is test_alone.val is None and len(test_alone.test.labels) == 6


def test_images_held_out_of_a_folder_are_scaled_as_its_test_images_are(tmp_path):
    """In memory and streamed: `eval_resize` is for both."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(8):
                save(tmp_path / "images" / split / name / f"{i}.png", picture(i, (20, 20)))
    config = config_of(name="folder", dir=str(tmp_path / "images"), size=8, eval_resize=16)
    config.data.cache, config.batch_size = str(tmp_path / "cache"), 4
    setup = prepare(config)
    assert len(setup.dataset.train.labels) == 12
    # The same files are in both folders: the held-out ones are among the test images.
    test = {image.tobytes() for image in setup.dataset.test.images}
    assert {image.tobytes() for image in setup.dataset.val.images} <= test
    assert not {image.tobytes() for image in setup.dataset.train.images} & test
    config.data.memory = 0.0
    streamed = prepare(config)
    assert streamed.dataset.val.labels.tolist() == setup.dataset.val.labels.tolist()
