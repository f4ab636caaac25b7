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
    own, size = setup.method.own_augmentation, setup.group.size
    shape = (size,) * own + order[0].shape
    moves = batches.draw_augmentation(augmentation_key, config.data, shape)
    images = batches.take(setup.train_split, order[0], moves, config.data.pad_mode)
    if not own:
        images = jnp.broadcast_to(images, (size, *images.shape))
    return images, setup.train_split.labels[order[0]]


def plain_loss(setup, config, images, labels, epoch=0):
    """(list of every network's parameters, trunk's parameters, own parameters) → loss."""
    method, size = setup.method, setup.group.size
    module = setup.group.stacks[-1].module.clone()
    part = setup.group.stacks[-1].part
    network = method.network and method.network(config.method, size)

    def apply(params, x, way):
        # Running statistics do not matter in train mode, and the batch is on one device.
        return module.apply({"params": params}, x, train=True, mutable="batch_stats", method=way)[0]

    def total(each, trunk, own):
        pooled = None
        if part == "branch":
            x = apply(trunk, images[0], "trunk")
            pooled = x.mean(axis=(1, 2))
            scale = 1 / size if method.rescale_trunk else 1.0
            x = scale * x + (1 - scale) * jax.lax.stop_gradient(x)
            outputs = [apply(params, x, "branch") for params in each]
        else:
            outputs = [apply(params, x, part) for params, x in zip(each, images, strict=True)]
        auxiliary = None
        if part == "with_auxiliary":
            auxiliary = jnp.stack([out.auxiliary for out in outputs])
        batch = Batch(
            logits=jnp.stack([out.logits for out in outputs]),
            labels=labels,
            features=tuple(out.features for out in outputs),
            auxiliary=auxiliary,
            trunk=pooled,
            epoch=epoch,
        )
        if network:
            batch = batch._replace(own=network.apply({"params": own}, batch))
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

    *trunk, last = jax.device_get(state.stacks)
    each = [peers.select(last.params, i) for i in range(4)]
    trunk_params = peers.select(trunk[0].params, 0) if trunk else {}
    own = jax.device_get(state.method.params)
    # The step's modules take statistics over mesh axes; one device is such a mesh.
    plain = jax.shard_map(
        lambda *params: jax.grad(plain_loss(setup, config, images, labels), (0, 1, 2))(*params),
        mesh=setup.group.mesh,
        in_specs=jax.sharding.PartitionSpec(),
        out_specs=jax.sharding.PartitionSpec(),
        check_vma=False,
    )
    expected = jax.jit(plain)(each, trunk_params, own)

    after = train_step(state, setup.train_split, order)
    *new_trunk, new = jax.device_get(after.stacks)
    moved = (
        [peers.select(new.params, i) for i in range(4)],
        peers.select(new_trunk[0].params, 0) if trunk else {},
        jax.device_get(after.method.params),
    )

    def compare(path, before, after, gradient):
        got = (before - after) / RATE
        np.testing.assert_allclose(
            got, gradient, rtol=2e-3, atol=2e-5, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, (each, trunk_params, own), moved, expected)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(expected[2])]
    assert bool(sizes) == (name in ("one", "okddip"))
    assert all(size > 1e-5 for size in sizes)
    if trunk:
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 1e-3
