"""Every method learns: the presets of configs/digits.py, cut to a fraction of their epochs."""

import importlib

import pytest
from test_recipes import NAMES

import orc_jax

EPOCHS = 12  # of 40


def preset(name):
    config = importlib.import_module("configs.digits").get_config(name)
    config.epochs = EPOCHS
    config.eval_every = EPOCHS
    config.checkpoint_every = EPOCHS
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("digits") / "teacher"
    orc_jax.train(preset("ind:resnet14"), workdir)
    return workdir


@pytest.mark.parametrize("name", [*NAMES, "kdcl-general", "kdcl-linear", "kdcl-naive"])
def test_every_kept_network_learns_the_digits(name, teacher, tmp_path):
    config = preset(name.split("-")[0])
    if name == "kd":
        config.peers[0].init_from = str(teacher)
    if name.startswith("kdcl-"):
        config.method.target = name.split("-")[1]
    result = orc_jax.train(config, tmp_path / "run")
    kept = [int(path.name) for path in (tmp_path / "run" / "networks").iterdir()]
    top1 = result.metrics["test"]["top1"]
    assert kept and min(top1[peer] for peer in kept) >= 95, top1
    assert result.metrics["test"]["ensemble"]["top1"] >= 95
    assert result.metrics["test"]["diversity"] > 0
