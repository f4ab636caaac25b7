"""The memory of a step, with and without the settings that save memory."""

import jax
import numpy as np
import pytest
from conftest import Pixels, tiny_config
from test_step import build, in_peer_order, run

from orc_jax import config as configs
from orc_jax import models
from orc_jax.errors import UserError
from orc_jax.loop import training_batches
from orc_jax.models.layers import Head
from orc_jax.models.network import Network, auxiliary_heads, stage


def deep(num_classes, norm):
    """Three stages of two blocks."""
    stages = [stage(Pixels, 16, 1, 2, norm) for _ in range(3)]
    head = Head(num_classes)
    return Network(stage(Pixels, 16, 1, 1, norm), stages, head, auxiliary_heads(stages, head))


@pytest.fixture(autouse=True)
def deep_network(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "deep", models.Entry(deep, torch_names=()))


def config_of(method, **changes):
    config = tiny_config(("deep",) * 3, method)
    config.update(changes)
    return config


def program(config):
    setup, state, train_step, _ = build(config)
    return train_step.lower(state, *next(training_batches(setup, 0))).compile(), state


@pytest.mark.parametrize("method", ["dcm", "one"])
def test_rematerialisation_changes_no_result(method):
    plain, again = (
        in_peer_order(*run(config_of(method, remat=remat), 1)) for remat in (False, True)
    )
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_rematerialisation_and_micro_batches_need_less_memory():
    def temporary(**changes):
        config = config_of("ind", **changes)
        config.peers = tuple(configs.peer("resnet8") for _ in range(2))
        compiled, _ = program(config)
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporary()
    assert temporary(remat=True) < 0.9 * plain
    assert temporary(micro_batches=4) < 0.75 * plain


@pytest.mark.parametrize("method", ["orc", "one"])
def test_nothing_keeps_two_copies_of_the_weights(method):
    """The whole state is donated: the new one lies where the old one was."""
    config = tiny_config(method_name=method, networks=("pixels",) * 4)
    compiled, state = program(config)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= size
    setup, state, train_step, _ = build(config)
    train_step(state, *next(training_batches(setup, 0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("parts", [3, 5, 32])
def test_micro_batches_divide_the_images(parts):
    with pytest.raises(UserError, match=f"micro_batches is {parts}, allowed: what divides the 16"):
        build(config_of("dml", micro_batches=parts))
