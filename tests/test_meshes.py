"""Three training steps of every method are the same on every mesh of devices."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import QUICK, run_command, tiny_config
from jax import lax
from test_step import build, in_peer_order, run

from orc_jax.evaluation import evaluate_split, renewal
from orc_jax.methods import orc
from orc_jax.step import compile_steps

DATA, PEER, BOTH = (8, 1), (1, 4), (2, 4)
FOUR = ("pixels",) * 4
PAIR = ("pixels_wide", "pixels")
# name → (method, its settings, networks, meshes besides that of one device)
GROUPS = {
    "orc_pivot": ("orc", {}, ("pixels_wide", *FOUR), [DATA, PEER]),
    "orc_peers": ("orc", {"pivot": None}, FOUR, [BOTH]),
    "orc_networks": ("orc", {"pivot": None}, PAIR, [DATA]),
    # The term that couples the images. Between the classes, one image that leaves these small
    # networks with equal logits has a gradient by DIST's 1e-8, which magnifies rounding.
    "kd": ("kd", {"divergence": "dist", "dist_beta": 0.0}, ("pixels_wide", *FOUR), [BOTH]),
    "dml": ("dml", {}, FOUR, [BOTH]),
    "kdcl_general": ("kdcl", {"target": "general", "held_out": 0.2}, FOUR, [BOTH]),
    "one": ("one", {}, FOUR, [DATA]),
    "cl_ilr": ("cl_ilr", {}, FOUR, [DATA]),
    "okddip": ("okddip", {}, FOUR, [DATA]),
    "okddip_net": ("okddip", {"form": "network"}, FOUR, [BOTH]),
    "dcm": ("dcm", {}, ("pixels_deep",) * 4, [BOTH]),
    "switokd": ("switokd", {}, PAIR, [DATA]),
    "switokd_2t2s": ("switokd", {"teachers": 2}, FOUR, [PEER]),
}
# Groups that learn from mixed images.
MIXED = ("orc_networks", "kdcl_general")
# Peers that were trained on images of another normalisation before.
OTHERS = {"orc_peers": (1, 3), "kd": (0,)}
# Groups that are trained with batch norm per device, and with as many micro-batches instead.
PARTS = ("orc_pivot",)
CASES = [(name, mesh) for name, (*_, meshes) in GROUPS.items() for mesh in meshes]


def config_of(name, mesh):
    """The config of a group on a mesh (data, peer)."""
    method, changes, networks, _ = GROUPS[name]
    config = tiny_config(networks, method, **changes)
    config.mesh.data, config.mesh.peer = mesh
    if name in MIXED:
        config.data.update(mixup=0.4, cutmix=1.0, label_smoothing=0.1)
    if method == "kd":
        config.peers[0].init_from = "given"  # here the teacher is whatever it was initialised to
    return config


def assert_copies_are_equal(state):
    """What several devices hold a copy of is the same bit for bit: they decided alike."""
    for leaf in jax.tree.leaves(state):
        first = {}
        for shard in leaf.addressable_shards:
            copy = first.setdefault(str(shard.index), shard.data)
            np.testing.assert_array_equal(shard.data, copy)


def trajectories():
    """Every group on every mesh (in a process with eight devices): parameters and metrics."""
    results = {}
    for name in PARTS:
        for mesh, parts in (((4, 1), 1), ((1, 1), 4)):
            config = config_of(name, mesh)
            config.sync_batch_norm, config.micro_batches = False, parts
            rows = in_peer_order(*run(config, 3))
            results[f"parts/{name}/{mesh[0]}"] = np.concatenate(rows)
    for name, mesh in [(name, (1, 1)) for name in GROUPS] + CASES:
        config, here = config_of(name, mesh), f"{name}/{mesh[0]}x{mesh[1]}"
        setup, state, train_step, order = build(config, others=OTHERS.get(name, ()))
        before = in_peer_order(setup, state)
        for _ in range(3):
            state = train_step(state, setup.train_split, order)
        for i, row in enumerate(in_peer_order(setup, state)):
            results[f"{here}/params{i}"] = row
            results[f"{here}/moved{i}"] = np.abs(row - before[i]).max()
        assert_copies_are_equal(state)
        own = jax.tree.leaves(state.method.params)
        if own:
            results[f"{here}/own"] = np.concatenate([np.asarray(leaf).ravel() for leaf in own])
        for metric, value in state.sums.items():
            results[f"{here}/{metric}"] = np.asarray(value)
        if name in ("orc_pivot", "one"):
            _, evaluation_step, _ = compile_steps(config, setup.group, setup.method)
            test = evaluate_split(setup, evaluation_step, state, setup.test_split)
            results[f"{here}/test_loss"] = np.array(test["loss"])
        if name == "kdcl_general":
            _, _, prediction_step = compile_steps(config, setup.group, setup.method)
            renewed = renewal(setup, prediction_step)(state)
            results[f"{here}/memory"] = np.asarray(renewed.method.memory)
    setup, state, train_step, order = build(config_of("orc_pivot", DATA))
    for _ in range(200):
        state = train_step(state, setup.train_split, order)
        jax.block_until_ready(state)  # many programs at once may starve each other's collectives
    assert_copies_are_equal(state)
    for mesh in (BOTH, (1, 1)):
        rows = in_peer_order(*devices_that_draw_otherwise(mesh))
        results[f"decided/{mesh[0]}"] = np.concatenate(rows)
    return results


def devices_that_draw_otherwise(mesh):
    """Three steps of ORC in which every device promotes, and asks for samples, by its own key."""

    def phase(config, batch, key):
        return orc.phase(config, batch, jax.random.fold_in(key, lax.axis_index(("data", "peer"))))

    config = tiny_config(FOUR, "orc", pivot=None, promotion="random")
    config.mesh.data, config.mesh.peer = mesh
    setup, state, _, order = build(config)
    method = replace(setup.method, phase=phase)
    train_step, *_ = compile_steps(config, setup.group, method)
    for _ in range(3):
        state = train_step(state, setup.train_split, order)
    assert_copies_are_equal(state)
    return setup, state


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
    file = tmp_path_factory.mktemp("spmd") / "results.npz"
    code = f"""
import sys
sys.path.insert(0, "tests")
import conftest, numpy
from orc_jax import models
models.NETWORKS.update(conftest.TINY)
import test_meshes
numpy.savez({str(file)!r}, **test_meshes.trajectories())
"""
    run_command("-c", code, devices=8, env=QUICK)
    return np.load(file)


@pytest.mark.parametrize("name, mesh", CASES)
def test_same_trajectory_on_every_mesh(on_meshes, name, mesh):
    one, here = f"{name}/1x1/", f"{name}/{mesh[0]}x{mesh[1]}/"
    values = [key.removeprefix(one) for key in on_meshes.files if key.startswith(one)]
    assert {"params1", "loss", "diversity", "learned"} <= set(values)
    for value in values:
        np.testing.assert_allclose(
            on_meshes[here + value], on_meshes[one + value], rtol=1e-3, atol=1e-4, err_msg=value
        )


def test_the_first_device_decides_for_all(on_meshes):
    eight, one = (on_meshes[f"decided/{devices}"] for devices in (2, 1))
    np.testing.assert_allclose(eight, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PARTS)
def test_micro_batches_are_what_devices_are_without_synchronised_batch_norm(on_meshes, name):
    """Four devices; one device, four micro-batches."""
    four, one = (on_meshes[f"parts/{name}/{devices}"] for devices in (4, 1))
    np.testing.assert_allclose(one, four, rtol=1e-3, atol=1e-4)
    synchronised = [f"{name}/1x1/params{i}" for i in range(len(GROUPS[name][2]))]
    whole = np.concatenate([on_meshes[key] for key in synchronised])
    assert np.abs(whole - four).max() > 1e-3


@pytest.mark.parametrize("name", GROUPS)
def test_the_meshes_agree_on_parameters_that_moved(on_meshes, name):
    """All but the frozen teacher's, which did not."""
    for i in range(len(GROUPS[name][2])):
        moved = on_meshes[f"{name}/1x1/moved{i}"]
        if name == "kd" and i == 0:
            assert moved == 0
        elif not name.startswith("switokd"):
            assert moved > 3e-3
