"""A network of other classes gives all but its classifier, when that is asked for."""

import jax
import numpy as np
import pytest
from conftest import assert_trees_equal, golden, golden_tensors, tiny_config, tiny_data
from safetensors.numpy import save_file

import orc_jax
from orc_jax import checks, peers
from orc_jax.errors import UserError
from orc_jax.prepare import prepare
from orc_jax.state import init_state
from orc_jax.trained import saved

FIVE, THREE = tiny_data(train=80), tiny_data(train=60, num_classes=3)


@pytest.fixture(scope="module")
def of_five(tmp_path_factory):
    """A run on five classes."""
    workdir = tmp_path_factory.mktemp("five") / "run"
    config = tiny_config(("pixels",), "ind")
    config.epochs = 1
    orc_jax.train(config, workdir, FIVE)
    return workdir


@pytest.mark.parametrize("source", ["", "/networks/0"])
def test_all_but_the_classifier_is_taken(of_five, tmp_path, source, capsys):
    config = tiny_config(("pixels", "pixels"), "ind")
    config.epochs, config.optimizer.learning_rate = 1, 0.0
    config.peers[0].init_from = f"{of_five}{source}"
    with pytest.raises(UserError, match=r"other classes: it knows 3, 4|new_head=True takes all"):
        orc_jax.train(config, tmp_path / "run", THREE)
    config.peers[0].new_head = True
    result = orc_jax.train(config, tmp_path / "run", THREE)
    said = " ".join(capsys.readouterr().out.split())
    assert "peers[0] gets a new classifier of 3 classes on the weights of" in said
    group = prepare(config, THREE).group
    found = peers.plain_variables(group.stacks, jax.device_get(result.state.stacks), 0)["params"]
    given = orc_jax.load_network(of_five / "networks" / "0")[1]["params"]
    for part in given.keys() - {"head"}:
        assert_trees_equal(found[part], given[part])
    assert found["head"]["fc"]["kernel"].shape == (6, 3)
    # The classifier is that of a fresh network at this position.
    config.peers[0].init_from, config.peers[0].new_head = None, False
    fresh = init_state(*prepare(config, THREE).state_args(), {})
    plain = peers.plain_variables(group.stacks, jax.device_get(fresh.stacks), 0)["params"]
    assert_trees_equal(found["head"], plain["head"])


def test_a_pytorch_file_of_other_classes(tmp_path):
    file = tmp_path / "resnet8.safetensors"
    save_file(golden_tensors(golden("models_cifar")["resnet8"]["tensors"]), file)
    config = tiny_config(("resnet8",), "ind")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    setup = prepare(config, (images, np.arange(40) % 3) * 2)
    with pytest.raises(UserError, match=r"fc\.weight gives .* .new_head=True takes all but the"):
        saved.pretrained(setup.group, {0: str(file)}, setup.images, tuple("012"))
    weights, _ = saved.pretrained(setup.group, {0: str(file)}, setup.images, tuple("012"), [0])
    state = init_state(*setup.state_args(), weights)
    params = jax.tree.map(lambda x: x[0], state.stacks[0].members.params)
    assert params["head"]["fc"]["kernel"].shape == (64, 3)
    assert_trees_equal(params["stages_0"], weights[0]["params"]["stages_0"])


def test_a_new_head_needs_weights_to_stand_on():
    config = tiny_config(("pixels",), "ind")
    config.peers[0].new_head = True
    with pytest.raises(UserError, match=r"peers\[0\].new_head is True, allowed: False without"):
        checks.check(config, 1)


def test_a_frozen_teacher_cannot_learn_a_new_head():
    config = tiny_config(("pixels", "pixels"), "kd")
    config.peers[0].init_from, config.peers[0].new_head = "somewhere", True
    with pytest.raises(UserError, match="because this teacher does not learn"):
        checks.check(config, 1)
