"""Passes of a group over a batch, inside the step: everything here runs under `jax.shard_map`.

"Whole" means an array of the whole group and batch, equal on all devices. All other arrays are of
this device's members and images, see `mesh.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from orc_jax.models.network import Outputs
from orc_jax.peers import Group, Stack, StackState, Variables, select, split_trunk


class Pass(NamedTuple):
    """A forward pass of a stack's members on this device's images.

    Attributes:
      outputs: `Outputs` with fields [members, images, ...].
      pullback: gradient for the outputs → gradients for the parameters (trunk, members); None for
        networks that do not learn from this pass.
      stats: the new running statistics (trunk, members).
    """

    outputs: Outputs
    pullback: Callable | None
    stats: Any


# --- Between whole arrays and this device's part of them ---


def share(x, axes, axis: int = 0):
    """Return this device's part of a whole array, which the mesh axes split along an axis."""
    size = x.shape[axis] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size, axis)


def decided(tree):
    """Return the whole arrays of the first device, where others may have rounded differently."""
    is_first = lax.axis_index(("data", "peer")) == 0

    def of_first(x):
        x = jnp.asarray(x)
        number = x.astype(jnp.int32) if x.dtype == bool else x
        return lax.psum(jnp.where(is_first, number, 0), ("data", "peer")).astype(x.dtype)

    return jax.tree.map(of_first, tree)


def members(stack: Stack, x):
    """Return the entries of a whole [P, ...] array (or P arrays) of this device's members."""
    if isinstance(x, tuple):
        x = jnp.stack([x[peer] for peer in stack.peers])
    else:
        x = jnp.asarray(x)[np.array(stack.peers)]
    return share(x, "peer") if stack.split else x


def over_batch(stack: Stack, tree):
    """Gather [members, images, ...] of all devices to [members, B, ...]."""
    return jax.tree.map(lambda x: lax.all_gather(x, stack.batch_axes, axis=1, tiled=True), tree)


def over_members(stack: Stack, tree):
    """Gather [members, ...] of all devices to the whole stack."""
    if not stack.split:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, "peer", tiled=True), tree)


class Inputs(NamedTuple):
    """Images that this device runs through its members of a stack.

    Attributes:
      images: [images, H, W, channels]; [members, images, H, W, channels] where every member has its
        own.
      own: whether it has.
    """

    images: Any
    own: bool

    def at(self, slots) -> "Inputs":
        """Return the images of the members in these slots."""
        return Inputs(self.images[slots] if self.own else self.images, self.own)


def inputs_of(stack: Stack, images, own: bool = False) -> Inputs:
    """Return the images of a `data` row that this device runs through the stack.

    Args:
      stack: of the group.
      images: [images, H, W, channels], normalised for the group; [P, images, H, W, channels] where
        every peer has its own.
      own: whether it has.
    """
    images = members(stack, images) if own else images
    images = images if stack.split else share(images, "peer", axis=int(own))
    if stack.rescale is None:
        return Inputs(images, own)
    factor, offset = (members(stack, x)[:, None, None, None] for x in stack.rescale)
    return Inputs((images if own else images[None]) * factor + offset, own=True)


# --- Forward ---


def forward(stack: Stack, state: StackState, inputs: Inputs) -> Pass:
    """Run this device's members forward in train mode.

    Args:
      stack, state: the networks.
      inputs: of the members.
    """
    images, own = inputs

    def run(params, images):
        trunk_params, members_params = params

        def member(params, stats, images):
            variables = {"params": trunk_params | params, "batch_stats": state.trunk.stats | stats}
            outputs, updated = stack.module.apply(
                variables,
                images.astype(stack.precision),
                train=True,
                auxiliary=stack.auxiliary,
                mutable="batch_stats",
                method="outputs",
            )
            stats, trunk_stats = split_trunk(stack, updated.get("batch_stats", {}))
            return in_float32(outputs), (trunk_stats, stats)

        # What no member has an own version of, a trunk and its statistics, is computed once.
        mapped = jax.vmap(member, in_axes=(0, 0, 0 if own else None), out_axes=(0, (None, 0)))
        mapped = partial(mapped, members_params, state.members.stats)
        return _in_parts(mapped, images, stack.micro_batches, axis=int(own))

    params = state.trunk.params, state.members.params
    outputs, pullback, stats = jax.vjp(partial(run, images=images), params, has_aux=True)
    if not stack.synchronised:
        stats = lax.pmean(stats, stack.batch_axes)
    return Pass(outputs, lambda d_outputs: pullback(d_outputs)[0], stats)


def _in_parts(run, images, count: int, axis: int):
    """Call `run(images)` in parts, one after the other, which keep nothing for the backward pass.

    Args:
      run: images → (outputs [members, images, ...], statistics).
      images: of this device.
      count: of the parts.
      axis: of the images.

    Returns:
      The outputs of all images, and the mean of the parts' statistics.
    """
    if count == 1:
        return run(images)
    parts = jnp.stack(jnp.split(images, count, axis))
    outputs, stats = lax.map(jax.checkpoint(run), parts)

    def joined(x):  # [count, members, images, ...] → [members, count · images, ...]
        x = x.swapaxes(0, 1)
        return x.reshape(len(x), -1, *x.shape[3:])

    return jax.tree.map(joined, outputs), jax.tree.map(lambda x: x.mean(axis=0), stats)


def predict(stack: Stack, state: StackState, inputs: Inputs) -> Outputs:
    """Run this device's members in eval mode (running statistics), without auxiliary heads."""
    images, own = inputs

    def member(params, stats, images):
        variables = {
            "params": state.trunk.params | params,
            "batch_stats": state.trunk.stats | stats,
        }
        images = images.astype(stack.precision)
        return in_float32(stack.module.apply(variables, images, train=False, method="outputs"))

    mapped = jax.vmap(member, in_axes=(0, 0, 0 if own else None))
    return mapped(state.members.params, state.members.stats, images)


def in_float32(outputs: Outputs) -> Outputs:
    """Return outputs as float32, whatever the precision of the activations."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)


def forward_group(group: Group, states, images, own: bool = False) -> list[Pass]:
    """Run every stack on the batch, once; the outputs of those that run later or not are zeros."""
    passes = []
    for stack, state in zip(group.stacks, states, strict=True):
        inputs = inputs_of(stack, images, own)
        if stack.kind == "train":
            passes.append(forward(stack, state, inputs))
            continue
        run = partial(predict, stack, state, inputs)
        if stack.kind == "frozen":
            outputs = run()
        else:
            outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run))
        passes.append(Pass(outputs, None, None))
    return passes


def whole_outputs(group: Group, outputs: list[Outputs]) -> Outputs:
    """Put the outputs of all stacks on this device together to those of the group and batch.

    Returns:
      Fields [P, B, ...], see `stack_peers`.
    """
    rows: list = [None] * group.size
    for stack, part in zip(group.stacks, outputs, strict=True):
        part = over_members(stack, over_batch(stack, part))
        for i, peer in enumerate(stack.peers):
            rows[peer] = select(part, i)
    return stack_peers(rows)


def stack_peers(rows: list[Outputs]) -> Outputs:
    """Stack every field over the peers; a field whose shapes differ is a tuple of P arrays."""

    def stacked(*leaves):
        return jnp.stack(leaves) if len({leaf.shape for leaf in leaves}) == 1 else leaves

    return jax.tree.map(stacked, *rows)


def predict_group(group: Group, states, images):
    """Run the whole group in eval mode; return the outputs for the whole batch."""
    outputs = [
        predict(stack, state, inputs_of(stack, images))
        for stack, state in zip(group.stacks, states, strict=True)
    ]
    return whole_outputs(group, outputs)


# --- Backward and update ---


def backward(group: Group, passes: list[Pass], d_outputs: Outputs) -> list:
    """Return the gradients of every stack's parameters; None where it does not learn from its pass.

    Args:
      group: the networks.
      passes: of `forward_group`.
      d_outputs: the gradient of the loss for `whole_outputs`.
    """
    grads: list = []
    for stack, stack_pass in zip(group.stacks, passes, strict=True):
        if stack_pass.pullback is None:
            grads.append(None)
            continue
        d_own = jax.tree.map(
            lambda d, s=stack: share(members(s, d), s.batch_axes, axis=1),
            d_outputs,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        grads.append(lax.psum(stack_pass.pullback(d_own), stack.batch_axes))
    return grads


def update_group(
    group: Group, states, passes: list[Pass], grads: list, step, learns, follows
) -> tuple:
    """Take the optimizer step of every stack that learns from its pass.

    Args:
      group: the networks.
      states: a `StackState` for each stack.
      passes: of `forward_group`.
      grads: of `backward`.
      step: int32 scalar, for the learning rates.
      learns, follows: [P] bool, see `update`.
    """
    return tuple(
        state
        if grad is None
        else update(
            stack,
            state,
            grad,
            stack_pass.stats,
            step,
            *(members(stack, x) for x in (learns, follows)),
        )
        for stack, state, stack_pass, grad in zip(group.stacks, states, passes, grads, strict=True)
    )


def update(stack: Stack, state: StackState, grads, stats, step, learns, follows) -> StackState:
    """Take one optimizer step with the members that learn.

    Parameters and optimizer of the others stay the same, bit for bit.

    Args:
      stack: the networks.
      state: what is updated.
      grads: of the parameters (trunk, members).
      stats: running statistics (trunk, members) after the pass that gave the gradients.
      step: int32 scalar, for the learning rate.
      learns: [members] bool. A trunk learns if any of its branches does.
      follows: [members] bool, whose running statistics become those of this pass; likewise.
    """
    rate = stack.learning_rate(step)

    def optimize(grads, opt_state, params):
        if stack.resets:
            keeps = ~jnp.isin(step, jnp.array(stack.resets))
            opt_state = jax.tree.map(lambda x: x * keeps.astype(x.dtype), opt_state)
        return stack.optimizer.update(grads, opt_state, params)

    trunk, own = (
        _optimized(rate, *args)
        for args in (
            (optimize, state.trunk, grads[0], stats[0], learns.any(), follows.any()),
            (jax.vmap(optimize), state.members, grads[1], stats[1], learns, follows),
        )
    )
    return StackState(members=own, trunk=trunk)


def _optimized(rate, optimize, variables, grads, stats, learns, follows):
    updates, opt_state = optimize(grads, variables.opt_state, variables.params)
    params = jax.tree.map(lambda p, u: p - rate * u, variables.params, updates)
    old = variables.params, variables.opt_state
    params, opt_state = where(learns, (params, opt_state), old)
    return Variables(params, where(follows, stats, variables.stats), opt_state)


def where(mask, new, old):
    """Choose, leaf by leaf, the new members where the mask holds and the old ones elsewhere."""

    def choose(new, old):
        return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)

    return jax.tree.map(choose, new, old)
