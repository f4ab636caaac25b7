"""Every published recipe: what it sets, and its real networks, initialised abstractly."""

import importlib
import math

import jax
import numpy as np
import pytest

from configs import folder
from orc_jax import checks, methods, peers
from orc_jax.errors import UserError
from orc_jax.state import abstract_state

METHODS = (
    "ind",
    "kd",
    "takd",
    "dgkd",
    "dml",
    "kdcl",
    "one",
    "cl_ilr",
    "okddip",
    "okddip_net",
    "dcm",
)
NAMES = (*METHODS, "switokd", "switokd_2t1s", "switokd_1t2s", "orc", "orc_peers")
FILES = ("digits", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder")
PRESETS = [
    (file, preset)
    for file in FILES
    for preset in importlib.import_module(f"configs.{file}").RECIPES
]
PARAMETERS = {  # 100 classes, 32×32×3; the first eleven are in the golden files
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "wrn_16_2": 703_284,
    "wrn_16_1": 180_916,
    "MobileNetV2": 812_836,
    "switokd_mobilenet": 3_309_476,
    "wrn_28_10": 36_536_884,
    "resnet26": 375_540,
    "resnet44": 667_188,
    "wrn_16_8": 11_007_540,
    "wrn_16_10": 17_174_324,
    "ResNet34": 21_328_292,
    "resnet34": 21_335_972,
    "resnet18": 11_227_812,
    "switokd_wrn_16_1": 181_476,
    "switokd_wrn_16_2": 704_420,
    "switokd_wrn_16_2_tiny": 704_420,
    "switokd_wrn_16_8": 11_012_036,
    "switokd_wrn_16_10": 17_179_940,
    "switokd_resnet20": 275_572,
    "switokd_resnet34": 21_328_292,
    "mobilenet_v2_x1.4": 4_495_076,  # torchvision's count at 200 classes is 179,300 more
}
PRESETS += [("folder", name) for name in folder.small(500)]
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "peer"))


def load(file, preset):
    return importlib.import_module(f"configs.{file}").get_config(preset)


def test_the_files_have_every_method():
    for file in FILES[:4]:
        assert sorted(importlib.import_module(f"configs.{file}").RECIPES) == sorted(NAMES)


@pytest.mark.parametrize("file, preset", PRESETS)
def test_every_preset_is_valid(file, preset):
    config = load(file, preset)
    for devices in (1, 2, 4, 8, 16):
        assert math.prod(checks.check(config, devices)) == devices
    assert config.data.name == file
    if preset.startswith("orc"):
        assert (config.method.pivot is None) == (preset == "orc_peers")


@pytest.mark.parametrize(
    "file, preset",
    [("cifar100", name) for name in NAMES]
    + [("cifar10", name) for name in NAMES if name.startswith(("orc", "switokd"))]
    + [("tiny_imagenet", name) for name in ("switokd", "switokd_small")]
    + [("imagenet", "orc")],
)
def test_the_real_networks_initialise_and_have_their_parameters(file, preset):
    config = load(file, preset)
    method = methods.get(config.method.name)
    group = peers.build(config, method, 100, 390, MESH)
    state = abstract_state(config, group, method, (32, 32, 3))
    for i, name in enumerate(group.names):
        plain = jax.eval_shape(
            lambda s, i=i: peers.plain_variables(group.stacks, s, i), state.stacks
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(plain["params"]))
        assert count == PARAMETERS[name], name
    assert (state.method.params != {}) == (config.method.name in ("one", "okddip"))


def shown(config):
    """Epochs, batch, and how the learning rate falls."""
    optimizer = config.optimizer
    return (
        config.epochs,
        config.batch_size,
        optimizer.learning_rate,
        optimizer.decay,
        tuple(optimizer.decay_epochs),
        optimizer.nesterov,
    )


@pytest.mark.parametrize("file", ["cifar10", "cifar100"])
@pytest.mark.parametrize("preset", ["ind", "kd", "dml", "kdcl", "one", "cl_ilr", "okddip_net"])
def test_okddips_recipe(file, preset):
    """300 epochs, batch 128, SGD Nesterov, ×0.1 at 150 and 225, decay 5e-4, crop and flip."""
    config = load(file, preset)
    assert shown(config) == (300, 128, 0.1, 0.1, (150, 225), True)
    assert (config.optimizer.weight_decay, config.optimizer.momentum) == (5e-4, 0.9)
    assert (config.data.pad, config.data.pad_mode, config.data.flip) == (4, "zero", True)


@pytest.mark.parametrize("preset", ["one", "cl_ilr", "okddip"])
def test_okddips_methods_have_its_temperature_and_ramp(preset):
    config = load("cifar100", preset).method
    assert (config.temperature, config.alpha, config.ramp_epochs) == (3.0, 1.0, 80)


def test_dcms_recipe():
    """200 epochs, SGD without Nesterov, ×0.2 and no momentum after 59, 119, 159, reflection."""
    config = load("cifar100", "dcm")
    assert shown(config) == (200, 128, 0.1, 0.2, (59, 119, 159), False)
    assert config.optimizer.reset_at_decay
    assert config.data.pad_mode == "reflect"
    assert [peer.model for peer in config.peers] == ["wrn_28_10"] * 2


def test_switokds_recipes():
    ten, hundred = load("cifar10", "switokd"), load("cifar100", "switokd")
    assert shown(ten) == (299, 128, 0.1, 0.1, (99, 149, 199), False)
    assert [peer.model for peer in ten.peers] == ["switokd_wrn_16_8", "switokd_wrn_16_1"]
    assert shown(hundred)[4] == (139, 199, 249)
    assert [peer.model for peer in hundred.peers] == ["switokd_wrn_16_2", "MobileNetV2"]
    assert [peer.optimizer.learning_rate for peer in hundred.peers] == [None, 0.01]
    for preset, teachers in (("switokd_2t1s", 2), ("switokd_1t2s", 1)):
        three = load("cifar100", preset)
        assert three.method.teachers == teachers
        assert [peer.model for peer in three.peers] == [
            "switokd_wrn_16_10",
            "switokd_wrn_16_2",
            "switokd_mobilenet",
        ]
        mobilenet = three.peers[2].optimizer
        assert (mobilenet.name, mobilenet.learning_rate) == ("adam", 0.01)


def test_switokds_recipes_on_tiny_imagenet():
    for preset, pair in (
        ("switokd", ["switokd_resnet34", "mobilenet_v2_x1.4"]),
        ("switokd_small", ["switokd_wrn_16_2_tiny", "switokd_resnet20"]),
    ):
        config = load("tiny_imagenet", preset)
        assert shown(config) == (199, 128, 0.01, 0.1, (99, 139, 179), False)
        assert [peer.model for peer in config.peers] == pair
        assert (config.data.pad, config.data.flip, config.data.size) == (4, True, 64)


def test_imagenets_recipes():
    """90 to 120 epochs, ×0.1 at 30, 60 and 90, decay 1e-4, random parts of 224×224."""
    for preset, epochs, batch in (("orc", 100, 256), ("switokd", 120, 512)):
        config = load("imagenet", preset)
        assert shown(config) == (epochs, batch, 0.1, 0.1, (30, 60, 90), False)
        assert config.optimizer.weight_decay == 1e-4
        assert [peer.model for peer in config.peers][:2] == ["resnet34", "resnet18"]
        assert (config.data.size, config.data.eval_resize, config.data.pad) == (224, 256, 0)
        assert config.data.resized_crop and config.data.flip


def test_other_networks_by_name():
    config = load("cifar100", "dml:resnet32,wrn_16_2")
    assert [peer.model for peer in config.peers] == ["resnet32", "wrn_16_2"]
    assert len(load("digits", "ind:resnet14").peers) == 1
    config = load("cifar100", "switokd:wrn_16_2,mobilenet")
    assert config.peers[1].optimizer.learning_rate is None


@pytest.mark.parametrize(
    "preset, message",
    [
        ("orc_peer", "unknown preset of configs/digits.py 'orc_peer': did you mean 'orc_peers'"),
        ("dml:resnet8,", "empty network name"),
    ],
)
def test_presets_that_do_not_exist(preset, message):
    with pytest.raises(UserError, match=message):
        load("digits", preset)


@pytest.mark.parametrize("count, batch, epochs", [(60, 16, 100), (500, 32, 40), (2000, 64, 20)])
def test_a_small_folder_gets_the_small_recipe(tmp_path, monkeypatch, capsys, count, batch, epochs):
    for split, images in (("train", count), ("test", 30)):
        for i in range(images):
            file = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    for argument in (f"--config.data.dir={tmp_path}", f"--config.data.dir\n{tmp_path}"):
        monkeypatch.setattr("sys.argv", ["main", *argument.split("\n")])
        config = folder.get_config()
        assert (config.batch_size, config.epochs) == (batch, epochs)
        assert f"{count:,} training images are few" in capsys.readouterr().out
        assert [peer.model for peer in config.peers] == ["resnet20", "resnet8", "resnet8"]
        assert folder.get_config("small_orc").epochs == epochs
        assert folder.get_config("orc").epochs == 240
    monkeypatch.setattr(folder, "FEW", count - 1)
    assert folder.get_config().epochs == 240
    monkeypatch.setattr("sys.argv", ["main", f"--config.data.dir={tmp_path / 'none'}"])
    assert folder.get_config().epochs == 240 and not capsys.readouterr().out
