"""Evaluation from a work directory: it reads no training image and repeats the run's numbers."""

import shutil

import jax
import numpy as np
import pytest
from conftest import assert_trees_equal, tiny_config, tiny_data
from test_folder import picture, save

import orc_jax
from orc_jax import prepare
from orc_jax.data import decode, folder, hold_out
from orc_jax.errors import UserError
from orc_jax.insight import inspect
from orc_jax.insight.report import findings
from orc_jax.insight.report.writing import report
from orc_jax.runtime.workdir import began


def folder_of(root, second=True):
    """Two classes of twelve training images each and, if so wanted, three validation images."""
    for i, name in enumerate(("cat", "dog")):
        for j in range(12):
            save(root / "train" / name / f"{j:02}.png", picture(100 * i + j))
        for j in range(3 * second):
            save(root / "val" / name / f"{j}.png", picture(1000 * i + j))
    return root


def trained(root, workdir, memory):
    """The last test metrics of a short run on a folder."""
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs, config.batch_size = 1, 8
    config.data.update(name="folder", dir=str(root), size=8, memory=memory)
    config.data.cache = str(root.parent / "cache")
    return orc_jax.train(config, workdir).metrics["test"]


@pytest.mark.parametrize("memory, how", [(0.5, "deleted"), (0.0, "deleted"), (0.5, "garbage")])
def test_training_images_are_not_needed(tmp_path, memory, how):
    """Neither to evaluate, nor for a report, nor for Grad-CAM of test images."""
    root, workdir = folder_of(tmp_path / "images"), tmp_path / "run"
    test = trained(root, workdir, memory)
    assert began(workdir).streamed == (memory == 0)
    before = findings.find(workdir, "last", "").answers
    if how == "deleted":
        shutil.rmtree(root / "train")
    else:
        for path in (root / "train").rglob("*.png"):
            path.write_bytes(b"garbage")
    assert orc_jax.evaluate(workdir) == test
    report([str(workdir)], tmp_path / "report.html")
    assert_trees_equal(findings.find(workdir, "last", "").answers, before)
    setup, state, _ = prepare.restore(workdir)
    assert setup.train_split is setup.dataset.train is None
    assert setup.steps_per_epoch == 3 and setup.dataset.class_names == ("cat", "dog")
    (shown,) = inspect.pictures(["test:0"], inspect.of_state(setup, state))
    expected = decode.decode(root / "val" / "cat" / "0.png", 8)
    np.testing.assert_array_equal(shown.pixels, expected)
    assert shown.label == 0


@pytest.mark.parametrize("memory", [0.5, 0.0])
def test_test_images_that_were_cut_off_are_the_same_ones(tmp_path, memory):
    root, workdir = folder_of(tmp_path / "images", second=False), tmp_path / "run"
    test = trained(root, workdir, memory)
    rest, cut_off = hold_out(folder.find(root).train, 0.1, seed=0)
    for path in rest.paths:
        (root / path).write_bytes(b"garbage")
    setup, _, _ = prepare.restore(workdir)
    assert setup.dataset.test.labels.tolist() == cut_off.labels.tolist() == [0, 1]
    assert orc_jax.evaluate(workdir) == test


def test_other_test_images_are_refused_and_other_training_images_not_looked_at(tmp_path):
    workdir, data = tmp_path / "run", tiny_data()
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = 1
    test = orc_jax.train(config, workdir, data).metrics["test"]
    other = tiny_data(seed=1)
    assert orc_jax.evaluate(workdir, data=(*other[:2], *data[2:])) == test
    with pytest.raises(UserError, match="was trained on other images or labels than these"):
        orc_jax.evaluate(workdir, data=(*data[:2], *other[2:]))


def test_a_run_is_evaluated_as_it_was_trained_whatever_the_memory(tmp_path, monkeypatch):
    """Streamed or not, and with the very mean and deviation that it was trained with."""
    root = folder_of(tmp_path / "images")
    for memory, fits in ((0.0, True), (0.5, False)):
        workdir = tmp_path / f"run{memory}"
        trained(root, workdir, memory)
        monkeypatch.setattr(decode, "fits_memory", lambda *args, fits=fits: fits)
        setup, _, _ = prepare.restore(workdir)
        monkeypatch.undo()
        assert setup.streamed == (memory == 0)
        noted = began(workdir).images
        for name in ("mean", "std"):
            split = jax.device_get(getattr(setup.test_split, name))
            np.testing.assert_array_equal(split, getattr(noted, name))
