"""The step's update against a plain program: one network after the other, one jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_data
from test_step import build

from orc_jax import peers
from orc_jax.data import batches
from orc_jax.methods.method import Batch
from orc_jax.state import streams

RATE = 0.05


def batch_of_the_first_step(setup, config, order):
    """(images [P, B, ...] as every peer sees them, labels) of step 0."""
    key = jax.random.fold_in(streams(config.seed)[2], 0)
    augmentation_key, _ = jax.random.split(key)
    own, size = setup.method.needs.own_augmentation, setup.group.size
    shape = (size,) * own + order[0].shape
    moves = batches.draw_augmentation(augmentation_key, config.data, shape)
    images = batches.take(setup.train_split, order[0], moves, config.data.pad_mode)
    if not own:
        images = jnp.broadcast_to(images, (size, *images.shape))
    return images, setup.train_split.labels[order[0]]


def plain_loss(setup, config, images, labels, epoch=0):
    """(list of every network's parameters, trunk's parameters, own parameters) → loss."""
    method, size, stack = setup.method, setup.group.size, setup.group.stacks[-1]
    module = stack.module.clone(trunk_gradient=1.0)
    network = method.own_network and method.own_network(config.method, size)

    def apply(params, x):
        # Running statistics do not matter in train mode, and the batch is on one device.
        return module.apply(
            {"params": params},
            x,
            train=True,
            auxiliary=stack.auxiliary,
            mutable="batch_stats",
            method="outputs",
        )[0]

    def total(each, trunk, own):
        if method.needs.rescaled_trunk:
            constant = jax.lax.stop_gradient(trunk)
            trunk = jax.tree.map(lambda x, c: x / size + (1 - 1 / size) * c, trunk, constant)
        outputs = [apply(trunk | params, x) for params, x in zip(each, images, strict=True)]
        outputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        batch = Batch(outputs, labels, epoch=epoch)
        if network:
            answer, _ = network.apply({"params": own}, batch, train=True, mutable="batch_stats")
            batch = batch._replace(own_output=answer)
        return sum(jnp.sum(term) for term in method.loss(config.method, batch).values())

    return total


@pytest.mark.parametrize(
    "name, changes",
    [
        ("one", {"ramp_epochs": 0}),
        ("cl_ilr", {"ramp_epochs": 0}),
        ("okddip", {"ramp_epochs": 0}),
        ("okddip", {"ramp_epochs": 0, "form": "network"}),
        ("dcm", {}),
        ("kdcl", {}),
        ("dml", {"constant_target": False}),
    ],
)
def test_a_step_moves_along_the_plain_programs_gradient(name, changes):
    """Plain gradient descent: (before − after) / learning rate is the gradient."""
    config = tiny_config(("pixels_deep",) * 4, name, **changes)
    config.optimizer.update(learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    setup, state, train_step, order = build(config, tiny_data(train=80))
    images, labels = batch_of_the_first_step(setup, config, order)

    (stack,) = jax.device_get(state.stacks)
    each, trunk = [peers.select(stack.members.params, i) for i in range(4)], stack.trunk.params
    assert bool(trunk) == (name in ("one", "cl_ilr") or config.method.get("form") == "branch")
    own = jax.device_get(state.method.params)
    # The step's modules take statistics over mesh axes; one device is such a mesh.
    plain = jax.shard_map(
        lambda *params: jax.grad(plain_loss(setup, config, images, labels), (0, 1, 2))(*params),
        mesh=setup.group.mesh,
        in_specs=jax.sharding.PartitionSpec(),
        out_specs=jax.sharding.PartitionSpec(),
        check_vma=False,
    )
    expected = jax.jit(plain)(each, trunk, own)

    after = train_step(state, setup.train_split, order)
    (new,) = jax.device_get(after.stacks)
    moved = (
        [peers.select(new.members.params, i) for i in range(4)],
        new.trunk.params,
        jax.device_get(after.method.params),
    )

    def compare(path, before, after, gradient):
        got = (before - after) / RATE
        np.testing.assert_allclose(
            got, gradient, rtol=2e-3, atol=2e-5, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, (each, trunk, own), moved, expected)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(expected[2])]
    assert bool(sizes) == (name in ("one", "okddip"))
    assert all(size > 1e-5 for size in sizes)
    if trunk:
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 1e-3
