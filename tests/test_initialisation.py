"""The first weights of every network against a table of what its program draws."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from conftest import TINY

from orc_jax import models
from orc_jax.models.norm import BatchNorm

# Standard deviation of a kernel, by its fan-in and fan-out; uniform distributions end at √3 of it.
DEVIATIONS = {
    "he by fan-out": lambda fan_in, fan_out: np.sqrt(2 / fan_out),
    "he by fan-in": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "1 by fan-in": lambda fan_in, fan_out: 1 / fan_in,
    "0.01": lambda fan_in, fan_out: 0.01,
    "uniform": lambda fan_in, fan_out: 1 / np.sqrt(3 * fan_in),  # PyTorch's default
    "uniform xavier": lambda fan_in, fan_out: np.sqrt(2) * np.sqrt(2 / (fan_in + fan_out)),
}


class Row(NamedTuple):
    """Networks, what their convolutions and dense layers draw, and whether a classifier's bias is
    U(±1/√inputs) (else 0) and norms begin with U(0, 1) (else 1)."""

    networks: str
    conv: str
    dense: str
    uniform_bias: bool
    uniform_norm: bool = False


PROGRAMS = [
    Row(
        "resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56 resnet110 resnet8x4 "
        "resnet32x4 ResNet10 ResNet18 ResNet34 ResNet50 resnet10 resnet18 resnet34 resnet50 "
        "wide_resnet20_8 okddip_resnet110",
        *("he by fan-out", "uniform", True),
    ),
    Row(
        "wrn_16_1 wrn_16_2 wrn_16_8 wrn_16_10 wrn_40_1 wrn_40_2", "he by fan-out", "uniform", False
    ),
    Row("wrn_28_10", "he by fan-in", "he by fan-in", False, uniform_norm=True),
    Row("vgg8 vgg11 vgg13 vgg16 vgg19", "he by fan-out", "0.01", False),
    Row("okddip_vgg16", "he by fan-out", "0.01", True),
    Row("densenet_40_12 densenet_100_12", "he by fan-in", "uniform", False),
    Row("ShuffleV1 ShuffleV2", "uniform", "uniform", True),
    Row("mobilenet MobileNetV1", "uniform", "uniform", True),
    Row("MobileNetV2 mobilenet_v2", "he by fan-out", "0.01", False),
    Row("mobilenet_v2_x1.4", "1 by fan-in", "1 by fan-in", False),
    Row(
        "switokd_wrn_16_1 switokd_wrn_16_2 switokd_wrn_16_8 switokd_wrn_16_10",
        *("uniform xavier", "uniform", True),
    ),
    Row(
        "switokd_resnet20 switokd_resnet34 switokd_mobilenet switokd_wrn_16_2_tiny",
        *("1 by fan-in", "1 by fan-in", True),
    ),
]


def layers(tree):
    """Every layer's own variables, wherever it is in a network."""
    if not all(isinstance(value, dict) for value in tree.values()):
        yield tree
        return
    for part in tree.values():
        yield from layers(part)


def assert_drawn(values: list, uniform: bool):
    """Values divided by their standard deviation, of a normal or a uniform distribution."""
    found = np.concatenate([value.ravel() for value in values])
    tolerance = 5 / np.sqrt(len(found))
    assert abs(found.mean()) < tolerance and abs(found.std() - 1) < tolerance
    largest = abs(found).max() / np.sqrt(3)
    assert 1 - 2 * tolerance < largest <= 1.00001 if uniform else largest > 1.1


@pytest.mark.parametrize("row", PROGRAMS, ids=lambda row: row.networks.split()[0])
def test_weights_are_drawn_as_in_the_networks_program(row):
    name, *others = row.networks.split()
    network = models.create(name, 100)
    drawing = network
    if name == "wrn_28_10":  # a network of the same kind, a fiftieth of the size
        build = models.entry(name).build
        drawing = build.func(10, 2, 100, BatchNorm, **build.keywords)
        assert drawing.initialisation == network.initialisation
    images = np.zeros((1, 32, 32, 3))
    draw = jax.jit(lambda key: drawing.init(key, images, train=False)["params"])
    drawn: dict = {"conv": [], "dense": [], "bias": []}
    for layer in layers(jax.device_get(draw(jax.random.key(1)))):
        bias = layer.get("bias", np.zeros(1))
        if "scale" in layer:
            drawn.setdefault("norm", []).append(layer["scale"])
        else:
            *window, inputs, outputs = layer["kernel"].shape
            kind, rule = ("conv", row.conv) if window else ("dense", row.dense)
            size = int(np.prod(window))
            drawn[kind].append(layer["kernel"] / DEVIATIONS[rule](size * inputs, size * outputs))
            if kind == "dense" and row.uniform_bias:
                drawn["bias"].append(bias * np.sqrt(3 * inputs))
                continue
        assert not bias.any()
    assert_drawn(drawn["conv"], "uniform" in row.conv)
    assert_drawn(drawn["dense"], "uniform" in row.dense)
    if row.uniform_bias:
        assert_drawn(drawn["bias"], uniform=True)
    norms = np.concatenate(drawn["norm"])
    if row.uniform_norm:
        assert_drawn([np.sqrt(3) * (2 * norms - 1)], uniform=True)
    else:
        assert (norms == 1).all()

    assert all(models.create(o, 100).initialisation == network.initialisation for o in others)


def test_every_network_is_in_the_table():
    names = [name for row in PROGRAMS for name in row.networks.split()]
    assert sorted(names) == sorted(models.NETWORKS.keys() - TINY.keys())
