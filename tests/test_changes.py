"""Runs that go on with other settings, on other machines."""

import numpy as np
import pytest
from conftest import assert_trees_equal, run_command, tiny_config, tiny_data

import orc_jax
from orc_jax.errors import UserError
from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoints import read_config

DATA = tiny_data(train=64)


def config_of(epochs=2, **optimizer):
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = epochs
    config.optimizer.update(optimizer)
    return config


def test_changes_that_change_no_result_are_accepted_and_said(tmp_path, capsys):
    whole = orc_jax.train(config_of(), tmp_path / "whole", DATA)
    one = config_of()
    one.epochs = 1
    orc_jax.train(one, tmp_path / "run", DATA)
    capsys.readouterr()

    other = config_of()
    other.eval_every, other.eval_batch_size, other.checkpoint_every = 2, 7, 3
    other.checkpoint_minutes, other.data.on_error, other.data.cache = 1.0, "skip", "elsewhere"
    resumed = orc_jax.train(other, tmp_path / "run", DATA)
    said = capsys.readouterr().out
    for change in (
        "eval_every: 1 → 2",
        "eval_batch_size: 16 → 7",
        "checkpoint_every: 1 → 3",
        "checkpoint_minutes: 30.0 → 1.0",
        "data.on_error: 'stop' → 'skip'",
        "data.cache: '' → 'elsewhere'",
        "epochs: 1 → 2",
    ):
        assert change in said
    assert_trees_equal(resumed.state.stacks, whole.state.stacks)
    with pytest.raises(UserError, match=r"another config \(batch_size: 16 → 8\)"):
        other.batch_size = 8
        orc_jax.train(other, tmp_path / "run", DATA)


@pytest.mark.parametrize("optimizer", [{}, {"schedule": "step", "decay_epochs": (1, 3)}])
def test_more_epochs_are_those_of_a_run_that_had_them_from_the_start(tmp_path, optimizer):
    whole = orc_jax.train(config_of(3, **optimizer), tmp_path / "whole", DATA)
    orc_jax.train(config_of(1, **optimizer), tmp_path / "run", DATA)
    result = orc_jax.train(config_of(3, **optimizer), tmp_path / "run", DATA)
    assert result.finished
    assert_trees_equal(result.state, whole.state)
    assert [record["epoch"] for record in metrics.read(tmp_path / "run")] == [1, 2, 3]
    assert read_config(tmp_path / "run").epochs == 3
    # Its new number of epochs is its own: fewer are another config.
    with pytest.raises(UserError, match=r"another config \(epochs: 3 → 1\)"):
        orc_jax.train(config_of(1, **optimizer), tmp_path / "run", DATA)


def test_a_cosine_is_extended_on_request_alone(tmp_path, capsys):
    orc_jax.train(config_of(2, schedule="cosine"), tmp_path / "run", DATA)
    with pytest.raises(UserError, match="or --extend for more epochs"):
        orc_jax.train(config_of(4, schedule="cosine"), tmp_path / "run", DATA)
    capsys.readouterr()
    result = orc_jax.train(config_of(4, schedule="cosine"), tmp_path / "run", DATA, extend=True)
    assert result.finished and int(result.state.step) == 16
    # Half way through the longer cosine the rate is half of what it was at first.
    assert (
        "the learning rate of peers 0, 1 was to fall from 0.05 to 0 by epoch 2; there it is 0.025 "
        "now" in capsys.readouterr().out
    )
    again = orc_jax.train(config_of(4, schedule="cosine"), tmp_path / "run", DATA)
    assert again.finished


ON_ANY_DEVICES = """
import sys, numpy as np, jax
sys.path[:0] = ["tests"]
from conftest import TINY, tiny_data
from orc_jax import models
models.NETWORKS.update(TINY)
import orc_jax
from orc_jax.trained.networks import from_run
test = orc_jax.evaluate(sys.argv[1], data=tiny_data(train=64))
print("found", len(jax.devices()), test["loss"], from_run(sys.argv[1], "ensemble").step)
"""


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_a_run_is_evaluated_on_any_number_of_devices(tmp_path, devices):
    config = config_of(1)
    orc_jax.train(config, tmp_path / "run", DATA)
    loss = metrics.read(tmp_path / "run")[-1]["test"]["loss"]
    # As if it had been trained on 16 devices, in parts.
    text = (tmp_path / "run" / "config.json").read_text()
    for old, new in (('"data": -1', '"data": 8'), ('"peer": -1', '"peer": 2')):
        assert old in text
        text = text.replace(old, new)
    text = text.replace('"micro_batches": 1', '"micro_batches": 2')
    text = text.replace('"batch_size": 16', '"batch_size": 32', 1)
    (tmp_path / "run" / "config.json").write_text(text)
    result = run_command("-c", ON_ANY_DEVICES, str(tmp_path / "run"), devices=devices)
    line = result.stdout.splitlines()[-1]
    assert line.startswith(f"found {devices} ") and line.endswith(" 4")
    found = [float(x) for x in line[line.index("[") + 1 : line.index("]")].split(",")]
    np.testing.assert_allclose(found, loss, rtol=1e-5)
