"""Evaluation from a work directory: it reads no training image and repeats the run's numbers."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal, tiny_config, tiny_data
from test_folder import picture, save

import orc_jax
from orc_jax import losses, peers, prepare
from orc_jax.data import batches, decode, folder, hold_out
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


@pytest.mark.parametrize("method, name", [("one", "gated"), ("okddip", "auxiliary")])
def test_the_ensemble_of_a_methods_paper_is_evaluated_beside_the_mean(tmp_path, method, name):
    """ONE-E, by its gate in eval mode, and OKDDip's, which leaves out the leader."""
    config, data = tiny_config(("pixels",) * 3, method), tiny_data(train=80)
    result = orc_jax.train(config, tmp_path, data)
    state, test = jax.device_get(result.state), result.metrics["test"]
    setup, _, _ = prepare.restore(tmp_path, data=data)
    (stack,), images = setup.group.stacks, batches.normalise(setup.images, data[2])
    outputs = [
        stack.module.apply(
            peers.plain_variables(setup.group.stacks, state.stacks, i),
            images,
            train=False,
            method="outputs",
        )
        for i in range(3)
    ]
    logits = np.stack([output.logits for output in outputs])
    if method == "one":
        own = state.method
        x = outputs[0].trunk @ own.params["Dense_0"]["kernel"]
        (norm, stats) = own.params["BatchNorm_0"], own.stats["BatchNorm_0"]
        assert abs(stats["mean"]).max() > 0
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
        gate = np.asarray(jax.nn.softmax(jax.nn.relu(x)))
        expected, members = np.einsum("bp,pbc->bc", gate, logits), logits
    else:
        expected, members = logits[:2].mean(axis=0), logits[:2]
    top1 = 100 * np.mean(expected.argmax(axis=1) == data[3])
    found = test["ensembles"][name]
    assert test["ensembles"].keys() == {name}
    assert found["top1"] == pytest.approx(top1, abs=1e-3)
    loss = losses.cross_entropy(jnp.asarray(expected), jnp.asarray(data[3])).mean()
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["loss"] != pytest.approx(test["ensemble"]["loss"], rel=1e-4)
    diversity = float(losses.diversity(jnp.asarray(members)).mean())
    assert found["diversity"] == pytest.approx(diversity, rel=1e-4)
    assert orc_jax.evaluate(tmp_path, data=data) == test
