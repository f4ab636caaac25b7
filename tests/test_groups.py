"""What methods need of a group: shared trunks, auxiliary heads, paused and frozen peers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import TINY, assert_trees_equal, tiny_config, tiny_data
from test_step import build

import orc_jax
from orc_jax import methods, models, peers
from orc_jax.data import batches
from orc_jax.errors import UserError
from orc_jax.methods.method import Needs
from orc_jax.prepare import prepare
from orc_jax.state import init_state
from orc_jax.step import compile_steps
from orc_jax.trained import saved, torch_weights

FOUR = ("pixels",) * 4


def train(config, workdir, **kwargs):
    return orc_jax.train(config, workdir, tiny_data(train=80, **kwargs))


def logits_in_the_group(config, data, state):
    """[P, B, C] in eval mode of the first test images."""
    setup = prepare(config, data)
    _, _, prediction_step = compile_steps(config, setup.group, setup.method)
    return setup, prediction_step(state.stacks, setup.test_split, setup.on_mesh(np.int32(0)))


@pytest.mark.parametrize(
    "name, changes, kept",
    [
        ("one", {}, [0, 1, 2, 3]),
        ("cl_ilr", {}, [0, 1, 2, 3]),
        ("okddip", {}, [3]),
        ("okddip", {"form": "network"}, [3]),
        ("dcm", {}, [0, 1, 2, 3]),
    ],
)
def test_what_is_kept_is_a_plain_network_with_the_same_logits(tmp_path, name, changes, kept):
    """A branch with its trunk, a leader, a network without its auxiliary heads."""
    network = "pixels_deep" if name == "dcm" else "pixels"
    config = tiny_config((network,) * 4, name, **changes)
    result = train(config, tmp_path / "run")
    data = tiny_data(train=80)
    setup, together = logits_in_the_group(config, data, result.state)
    images, _, _ = batches.evaluation_batch(setup.test_split, 0, config.eval_batch_size)

    saved = sorted((tmp_path / "run" / "networks").iterdir())
    assert [int(path.name) for path in saved] == kept
    for peer, path in zip(kept, saved, strict=True):
        module, variables, description = orc_jax.load_network(path)
        alone = module.apply(variables, images, train=False)
        np.testing.assert_allclose(alone, together[peer], rtol=1e-4, atol=1e-5)

        plain = jax.eval_shape(lambda m=module: m.init(jax.random.key(0), images, train=False))
        shapes = [jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (variables, plain)]
        assert shapes[0] == shapes[1]  # nothing is missing, and no head is left over
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert setup.num_params[peer] == count
        assert description["network"] == network and description["num_classes"] == 5


def test_cl_ilr_divides_the_trunks_gradient_by_the_number_of_branches(monkeypatch):
    """Plain gradient descent: the trunk moves by a P-th, the branches as without."""
    config = tiny_config(FOUR, "cl_ilr")
    config.optimizer.update(momentum=0.0, weight_decay=0.0)
    method = methods.get("cl_ilr")
    moves = []
    for rescale in (True, False):
        monkeypatch.setitem(
            methods.METHODS,
            "cl_ilr",
            dataclasses.replace(
                method, needs=dataclasses.replace(method.needs, rescaled_trunk=rescale)
            ),
        )
        setup, state, train_step, order = build(config)
        (before,) = jax.device_get(state.stacks)
        (after,) = jax.device_get(train_step(state, setup.train_split, order).stacks)
        moves.append(
            [
                jax.tree.map(np.subtract, new.params, old.params)
                for new, old in ((after.trunk, before.trunk), (after.members, before.members))
            ]
        )
    (trunk, branches), (whole_trunk, same_branches) = moves
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(4 * a, b, rtol=1e-3, atol=1e-6), trunk, whole_trunk
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), branches, same_branches
    )
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(trunk)) > 1e-4


def test_branches_share_one_trunk_that_every_branch_trains():
    setup, state, *_ = build(tiny_config(FOUR, "one"))
    (stack,), (branches,) = setup.group.stacks, state.stacks
    assert stack.shared_trunk and stack.peers == (0, 1, 2, 3)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(branches.members)} == {4}
    assert branches.trunk.params.keys() == {"stem", "stages_0"}
    assert branches.members.params.keys() == {"stages_1", "head"}
    plain = peers.plain_variables(setup.group.stacks, state.stacks, 2)["params"]
    template = peers.abstract_logits(stack, setup.dataset.image_shape)[1]["params"]
    assert jax.tree.map(np.shape, plain) == jax.tree.map(lambda x: x.shape, template)


def paused_steps(config, steps):
    """(who was paused, stacks before, stacks after) of every step."""
    setup, state, train_step, order = build(config, tiny_data(train=80))
    total = 0
    for _ in range(steps):
        before, begins_epoch = jax.device_get(state.stacks), int(state.step) % len(order) == 0
        state = train_step(state, setup.train_split, order)
        learned = np.array(state.sums["learned"]) - (0 if begins_epoch else total)
        total = np.array(state.sums["learned"])
        yield setup, learned == 0, before, jax.device_get(state.stacks)


def test_a_paused_teacher_rests_and_its_statistics_follow():
    """Weights and momentum stay bit for bit; in learning mode they move."""
    config = tiny_config(("pixels_wide", "pixels"), "switokd")
    config.optimizer.learning_rate = 0.2
    modes = set()
    for setup, paused, before, after in paused_steps(config, 100):
        assert not paused[1]
        for stack, old, new in zip(setup.group.stacks, before, after, strict=True):
            if paused[stack.peers[0]]:
                for part in ("params", "opt_state"):
                    assert_trees_equal(getattr(old.members, part), getattr(new.members, part))
                for a, b in zip(
                    *map(jax.tree.leaves, (old.members.stats, new.members.stats)), strict=True
                ):
                    assert np.any(a != b)
            else:
                for a, b in zip(
                    *map(jax.tree.leaves, (old.members.params, new.members.params)), strict=True
                ):
                    assert np.any(a != b)
        modes.add(bool(paused[0]))
    assert modes == {True, False}


def test_switches_are_logged(tmp_path):
    config = tiny_config(("pixels_wide", "pixels_wide", "pixels"), "switokd", teachers=2)
    logged = train(config, tmp_path / "run").metrics["train"]
    for pair in ("0_2", "1_2"):
        assert 0 <= logged[f"expert/{pair}"] <= 1
        assert 0 < logged[f"gap/{pair}"] <= 2 and -2 < logged[f"delta/{pair}"] < 2
    for teacher in (0, 1):
        share = 1 - logged["learned"][teacher]
        assert logged[f"expert/{teacher}_2"] == pytest.approx(share, abs=1e-6)


def test_kd_from_every_kind_of_teacher(tmp_path):
    """A run, a saved network; the teacher stays as it was loaded, in eval mode."""
    teacher = tiny_config(("pixels_wide",), "ind")
    teacher.epochs = 1  # the best checkpoint is the last one
    train(teacher, tmp_path / "teacher")
    sources = [tmp_path / "teacher", tmp_path / "teacher" / "networks" / "0"]
    students = []
    for i, source in enumerate(sources):
        config = tiny_config(("pixels_wide", "pixels"), "kd")
        config.peers[0].init_from = str(source)
        result = train(config, tmp_path / str(i))
        stacks = prepare(config, tiny_data(train=80)).group.stacks
        kept = peers.plain_variables(stacks, jax.device_get(result.state.stacks), 0)
        _, variables, _ = orc_jax.load_network(tmp_path / "teacher" / "networks" / "0")
        assert_trees_equal(kept, variables)
        assert result.metrics["train"]["learned"] == [0, 1]
        assert result.metrics["train"]["loss"][0] == 0
        students.append(result.state.stacks[1])
        assert [p.name for p in (tmp_path / str(i) / "networks").iterdir()] == ["1"]
    config.peers[0].init_from = str(tmp_path / "0" / "networks" / "1")
    with pytest.raises(UserError, match=r"peers\[0\].init_from: .* is a pixels, not a pixels_wide"):
        train(config, tmp_path / "other")


def test_kd_from_a_pytorch_file(tmp_path):
    """Its tensors, by PyTorch's names and layout, are what the frozen teacher starts from."""
    module = models.create("resnet8", 5)
    variables = jax.jit(lambda k: module.init(k, jnp.zeros((1, 8, 8, 1)), train=False))(
        jax.random.key(7)
    )
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = torch_weights.torch_name("resnet8", tuple(key.key for key in path[1:]))
        leaf = np.asarray(leaf)
        leaf = leaf.transpose((3, 2, 0, 1)) if leaf.ndim == 4 else leaf.T
        tensors[name] = torch.tensor(np.ascontiguousarray(leaf))
    torch.save(tensors, tmp_path / "teacher.pth")
    config = tiny_config(("resnet8", "pixels"), "kd")
    config.peers[0].init_from = str(tmp_path / "teacher.pth")
    setup = prepare(config, tiny_data())
    weights, own_images = saved.pretrained(
        setup.group, {0: config.peers[0].init_from}, setup.images
    )
    assert own_images == {}  # a file of weights does not say how its images were normalised
    state = init_state(*setup.state_args(), weights)
    assert [stack.kind for stack in setup.group.stacks] == ["frozen", "train"]
    teacher = peers.plain_variables(setup.group.stacks, jax.device_get(state.stacks), 0)
    assert_trees_equal(teacher, dict(variables))


@pytest.mark.parametrize("name", ["one", "cl_ilr", "okddip"])
def test_branches_that_start_from_one_network_differ(name, tmp_path):
    """Its trunk and the first branch are that network's; the other branches are fresh."""
    config = tiny_config(FOUR, name)
    setup = prepare(config, tiny_data(train=80))
    given = peers.plain_variables(
        setup.group.stacks, jax.device_get(init_state(*setup.state_args(), {}).stacks), 0
    )
    given = jax.tree.map(lambda x: x + 1.0, given)
    (stack,) = jax.device_get(
        init_state(*setup.state_args(), dict.fromkeys(range(4), given)).stacks
    )
    first = peers.plain_variables(setup.group.stacks, (stack,), 0)
    assert_trees_equal(first, given)
    kernels = stack.members.params["head"]["fc"]["kernel"]
    assert all(np.abs(kernels[i] - kernels[j]).max() > 1e-2 for i in range(4) for j in range(i))


def test_a_gate_has_the_optimizer_of_the_branches():
    config = tiny_config(FOUR, "one")
    for peer in config.peers:
        peer.optimizer.update(name="adam", learning_rate=0.0)
    setup, state, train_step, order = build(config)
    before = jax.device_get(state.method)
    after = jax.device_get(train_step(state, setup.train_split, order).method)
    assert_trees_equal(before.params, after.params)
    moments = jax.tree.leaves(after.opt_state)
    assert len(moments) > len(jax.tree.leaves(after.params)) and any(map(np.any, moments))


def test_kdcl_general_renews_its_weights_every_epoch(tmp_path):
    """From held-out images, which are not trained on; a resumed run has the same ones."""
    config = tiny_config(FOUR, "kdcl", target="general", held_out=0.2)
    setup = prepare(config, tiny_data(train=80))
    assert len(setup.held_out_split.labels) == 15  # 3 of each of 5 classes
    assert len(setup.train_split.labels) + len(setup.held_out_split.labels) == 80
    weights = []
    for epochs in (1, 2):
        config.epochs = epochs
        result = train(config, tmp_path / str(epochs))
        weights.append(np.array(result.state.method.memory))
        assert weights[-1].sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(weights[0] - weights[1]).max() > 1e-3
    assert np.abs(weights[1] - 0.25).max() > 1e-3


@pytest.mark.parametrize("name", ["one", "kdcl", "dcm", "switokd", "kd"])
def test_every_kind_of_step_compiles_once_and_transfers_nothing(name):
    config = tiny_config(("pixels_deep",) * 3, name)
    if name == "kd":
        config.peers[0].init_from = "given"
    setup = prepare(config, tiny_data())
    state = init_state(*setup.state_args(), {})
    train_step, *_ = compile_steps(config, setup.group, setup.method)
    order = setup.on_mesh(np.arange(48, dtype=np.int32).reshape(3, 16))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state = train_step(state, setup.train_split, order)
    assert train_step._cache_size() == 1
    assert np.all(np.array(state.failed_at) == -1)


@pytest.mark.optimised
def test_branches_run_their_trunk_once():
    """Multiply-adds of the forward pass: one trunk and P branches, not P networks."""

    def flops(networks, name):
        _, state, train_step, order = build(config := tiny_config(networks, name))
        split = prepare(config, tiny_data()).train_split
        return train_step.lower(state, split, order).compile().cost_analysis()["flops"]

    assert flops(FOUR, "cl_ilr") < 0.8 * flops(FOUR, "dml")


@pytest.mark.parametrize(
    "name, networks, change, message",
    [
        ("one", FOUR, {"mesh.peer": 2}, r"mesh\.peer is 2, allowed: 1, because the branches"),
        (
            "cl_ilr",
            FOUR,
            {"peers[2].optimizer.learning_rate": 0.3},
            r"peers\[2\]\.optimizer differs",
        ),
        ("one", FOUR, {"peers[2].init_from": "x"}, r"peers\[2\]\.init_from differs from that of"),
        ("dcm", ("tiny", "tiny"), {}, r"tiny \(peers\[0\]\) has no auxiliary heads"),
    ],
)
def test_groups_that_cannot_be(name, networks, change, message):
    config = tiny_config(networks, name)
    for key, value in change.items():
        if key == "mesh.peer":
            config.mesh.peer = value
        elif key == "peers[2].init_from":
            config.peers[2].init_from = value
        else:
            config.peers[2].optimizer.learning_rate = value
    with pytest.raises(UserError, match=message):
        prepare(config, tiny_data())


def test_what_a_method_cannot_ask_for(monkeypatch):
    orc = methods.get("orc")
    monkeypatch.setitem(
        methods.METHODS, "orc", dataclasses.replace(orc, needs=Needs(own_augmentation=True))
    )
    with pytest.raises(ValueError, match="a teacher's update needs whole networks"):
        build(tiny_config())
    monkeypatch.setitem(
        methods.METHODS, "orc", dataclasses.replace(orc, needs=Needs(auxiliary_heads=True))
    )
    with pytest.raises(ValueError, match="auxiliary heads need peers that all train"):
        build(tiny_config(("pixels_deep",) * 3))


def test_a_saved_network_is_replaced_whole(tmp_path):
    module = models.create("pixels", 3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    description = {"network": "pixels", "num_classes": 3}
    (tmp_path / ".a.new").mkdir()  # left by a kill
    saved.save(tmp_path / "a", variables, description)
    saved.save(tmp_path / "a", jax.tree.map(jnp.zeros_like, variables), description)
    _, loaded, found = orc_jax.load_network(tmp_path / "a")
    assert found == description
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(loaded["params"]))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(UserError, match="is not a saved network"):
        orc_jax.load_network(tmp_path)


def test_tiny_networks_cover_what_methods_need():
    assert len(TINY["pixels_deep"].build(3, models.BatchNorm).auxiliary) == 2
