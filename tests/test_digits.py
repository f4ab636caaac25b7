"""Every method learns: the presets of configs/digits.py, smaller and with fewer epochs."""

import importlib

import pytest
from test_recipes import NAMES

import orc_jax

# ORC is trained by its command in test_commands.
METHODS = [name for name in NAMES if name != "orc"]
# The smallest group that each method works with.
THREE = ("okddip", "okddip_net", "switokd_2t1s", "switokd_1t2s", "orc_peers")


def preset(name):
    # Auxiliary heads need three stages.
    network = "tiny_digits_deep" if name == "dcm" else "tiny_digits"
    networks = ",".join([network] * (3 if name in THREE else 2))
    config = importlib.import_module("configs.digits").get_config(f"{name}:{networks}")
    config.data.train_images, config.batch_size = 480, 32  # of 1,437 and 64
    config.epochs = config.eval_every = config.checkpoint_every = 10
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("digits") / "teacher"
    orc_jax.train(preset("ind"), workdir)
    return workdir / "networks" / "0"


@pytest.mark.parametrize("name", [*METHODS, "kdcl-general"])
def test_every_kept_network_learns_the_digits(name, teacher, tmp_path):
    config = preset(name.split("-")[0])
    if name == "kd":
        config.peers[0].init_from = str(teacher)
    if name.startswith("kdcl-"):
        config.method.target = name.split("-")[1]
    result = orc_jax.train(config, tmp_path / "run")
    kept = [int(path.name) for path in (tmp_path / "run" / "networks").iterdir()]
    top1 = result.metrics["test"]["top1"]
    assert kept and min(top1[peer] for peer in kept) >= 75, top1
    assert result.metrics["test"]["ensemble"]["top1"] >= 80
    assert result.metrics["test"]["diversity"] > 0
