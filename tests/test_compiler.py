"""XLA's options, and what XLA makes of a residual stage on a CPU."""

import re

import jax
import numpy as np
import pytest

from orc_jax import compiler
from orc_jax.models.network import Stage
from orc_jax.models.norm import BatchNorm
from orc_jax.models.resnet import ResidualBlock

OPTION = "xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture(scope="module")
def gradient():
    """The gradient of a stage of six residual blocks, and its arguments."""
    stage = Stage(ResidualBlock, ((8, 1),) * 6, BatchNorm)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 8))
    variables = stage.init(jax.random.key(1), images, True)

    def loss(params):
        applied = stage.apply(variables | {"params": params}, images, True, mutable="batch_stats")
        return (applied[0] ** 2).mean()

    return jax.grad(loss), variables["params"]


def test_options_do_not_change_results(gradient):
    function, params = gradient
    plain, ours = jax.jit(function)(params), compiler.jit(function)(params)
    for expected, found in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max() + 1e-7)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="this XLA ignores barriers when it fuses"
)
def test_activations_are_not_computed_for_every_reader(gradient):
    function, params = gradient
    text = compiler.jit(function).lower(params).compile().as_text()
    # Twelve activations, each with at most one more fusion that computes it; 70 without barriers.
    assert len(re.findall(r" maximum\(", text)) <= 2 * 12


def test_the_option_is_used_on_a_cpu_alone():
    assert compiler.options("cpu") == {OPTION: ""}
    assert compiler.options("gpu") == {}


def test_unknown_options_are_left_out(monkeypatch):
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {"xla_cpu_of_tomorrow": True, OPTION: ""})
    assert compiler.options("cpu") == {OPTION: ""}
    assert compiler.jit(lambda x: x + 1)(1) == 2


def test_flags_of_the_user_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{OPTION}=LIBRARY_FUSION_TYPE_DOT")
    assert compiler.options("cpu") == {}
