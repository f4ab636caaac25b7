"""Passes of a group over a batch, inside the step: what follows runs under `jax.shard_map`.

"Whole" is an array of the whole group and batch, equal on all devices; the rest are this
device's members and images, see `peers.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from orc_jax.models.network import Outputs
from orc_jax.peers import Group, Stack, StackState, select


class Pass(NamedTuple):
    """A forward pass of a stack's members on this device's images.

    Attributes:
      outputs: `Outputs` [members, images, ...], or a trunk's activations.
      pullback: gradient for the outputs → gradients for (parameters, inputs); None for
        networks that are frozen.
      stats: the new running statistics.
    """

    outputs: Any
    pullback: Callable | None
    stats: Any


def share(x, axes, axis: int = 0):
    """This device's part of a whole array."""
    size = x.shape[axis] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size, axis)


def members(stack: Stack, x):
    """The entries of a whole [P, ...] array that belong to this device's members.

    A tuple of P arrays will do as well.
    """
    if isinstance(x, tuple):
        x = jnp.stack([x[peer] for peer in stack.peers])
    else:
        x = jnp.asarray(x)[np.array(stack.peers)]
    return share(x, "peer") if stack.split else x


def over_batch(stack: Stack, x):
    """[members, B, ...] of the whole batch from this device's [members, images, ...]."""
    return jax.tree.map(lambda x: lax.all_gather(x, stack.batch_axes, axis=1, tiled=True), x)


def over_peers(group: Group, parts: list) -> list:
    """One entry a peer, in peer order, from each stack's [members, ...] (arrays or trees).

    Peers of a stack whose part is None have None; trunks are passed over.
    """
    rows: list = [None] * group.size
    for stack, part in zip(group.stacks, parts, strict=True):
        if part is None or stack.part == "trunk":
            continue
        if stack.split:
            part = jax.tree.map(lambda x: lax.all_gather(x, "peer", tiled=True), part)
        for i, peer in enumerate(stack.peers):
            rows[peer] = select(part, i)
    return rows


def images_of(stack: Stack, images, own: bool = False):
    """The images of a `data` row that this device runs through the stack.

    Args:
      images: [images, H, W, channels]; [P, images, H, W, channels] where every peer has its
        own.
      own: whether it has.
    """
    images = members(stack, images) if own else images
    return images if stack.split else share(images, "peer", axis=int(own))


def forward(stack: Stack, state: StackState, inputs, own: bool = False) -> Pass:
    """One forward pass in train mode of this device's members.

    Args:
      inputs: images, or the trunk's activations of them; see `images_of`.
      own: whether every member has its own.
    """

    def run(params, inputs):
        def one(params, stats, x):
            variables = {"params": params, "batch_stats": stats}
            x = x.astype(stack.precision)
            out, updated = stack.module.apply(
                variables, x, train=True, mutable="batch_stats", method=stack.part
            )
            return _in_float32(out), updated["batch_stats"]

        mapped = jax.vmap(one, in_axes=(0, 0, 0 if own else None))
        mapped = partial(mapped, params, state.stats)
        return _in_parts(mapped, inputs, stack.micro_batches, axis=int(own))

    outputs, pullback, stats = jax.vjp(run, state.params, inputs, has_aux=True)
    if not stack.synchronised:
        stats = lax.pmean(stats, stack.batch_axes)
    return Pass(outputs, pullback, stats)


def _in_parts(run, inputs, count: int, axis: int):
    """`run(inputs)` in parts, one after the other, which keep nothing for the backward pass.

    Args:
      run: inputs → (outputs [members, images, ...], statistics).
      count: of the parts.
      axis: of the images in the inputs.

    Returns:
      The outputs of all images, and the mean of the parts' statistics.
    """
    if count == 1:
        return run(inputs)
    parts = jnp.stack(jnp.split(inputs, count, axis))
    outputs, stats = lax.map(jax.checkpoint(run), parts)

    def joined(x):  # [count, members, images, ...] → [members, count · images, ...]
        x = x.swapaxes(0, 1)
        return x.reshape(len(x), -1, *x.shape[3:])

    return jax.tree.map(joined, outputs), jax.tree.map(lambda x: x.mean(axis=0), stats)


def predict(stack: Stack, state: StackState, inputs, own: bool = False):
    """Outputs [members, images, ...] in eval mode (running statistics), no auxiliary heads."""
    part = "whole" if stack.part == "with_auxiliary" else stack.part

    def one(params, stats, x):
        variables, x = {"params": params, "batch_stats": stats}, x.astype(stack.precision)
        return _in_float32(stack.module.apply(variables, x, train=False, method=part))

    return jax.vmap(one, in_axes=(0, 0, 0 if own else None))(state.params, state.stats, inputs)


def _in_float32(outputs):
    return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)


def forward_group(group: Group, states, images, own: bool = False) -> list[Pass | None]:
    """The one pass of every stack on the batch; None for those that have theirs later."""
    passes: list = []
    for stack, state in zip(group.stacks, states, strict=True):
        inputs = passes[-1].outputs[0] if stack.part == "branch" else images_of(stack, images, own)
        if stack.kind == "later":
            passes.append(None)
        elif stack.kind == "frozen":
            passes.append(Pass(predict(stack, state, inputs, own), None, None))
        else:
            passes.append(forward(stack, state, inputs, own))
    return passes


def predict_group(group: Group, states, images):
    """Logits [P, B, C] of the whole group and batch in eval mode."""
    outputs: list = []
    for stack, state in zip(group.stacks, states, strict=True):
        inputs = outputs[-1][0] if stack.part == "branch" else images_of(stack, images)
        outputs.append(predict(stack, state, inputs))
    logits = [
        None if stack.part == "trunk" else over_batch(stack, out.logits)
        for stack, out in zip(group.stacks, outputs, strict=True)
    ]
    return jnp.stack(over_peers(group, logits))


def whole_outputs(group: Group, passes: list[Pass | None]) -> dict:
    """What the passes gave, of the whole group and batch, as fields of a method's `Batch`."""
    parts, trunk = [], None
    for stack, one in zip(group.stacks, passes, strict=True):
        if stack.part == "trunk":
            parts.append(None)
            trunk = over_batch(stack, one.outputs.mean(axis=(2, 3)))[0]
        else:
            parts.append(one and over_batch(stack, one.outputs))
    return by_field(over_peers(group, parts)) | {"trunk": trunk}


def by_field(rows: list) -> dict:
    """The peers' `Outputs` (None for a peer without a pass) as fields of a method's `Batch`."""
    some = next(row for row in rows if row is not None)
    nothing = jnp.zeros_like(some.logits)
    auxiliary = None
    if some.auxiliary is not None:
        auxiliary = jnp.stack([row.auxiliary for row in rows])
    return {
        "logits": jnp.stack([nothing if row is None else row.logits for row in rows]),
        "features": tuple(None if row is None else row.features for row in rows),
        "auxiliary": auxiliary,
    }


def backward(group: Group, passes: list[Pass | None], d_outputs: dict) -> list:
    """Gradients for every stack's parameters, None where it does not learn from its pass.

    Args:
      passes: of `forward_group`.
      d_outputs: the loss's gradient for `whole_outputs`.
    """
    grads, d_trunk = [], None
    for stack, one in reversed(list(zip(group.stacks, passes, strict=True))):
        if one is None or one.pullback is None:
            grads.append(None)
            continue
        if stack.part == "trunk":
            _, _, height, width, _ = one.outputs.shape
            pooled = share(d_outputs["trunk"], stack.batch_axes)[None, :, None, None]
            d_out = group.trunk_scale * d_trunk[None] + pooled / (height * width)
        else:
            d_out = Outputs(
                *(
                    None
                    if d_outputs[name] is None
                    else share(members(stack, d_outputs[name]), stack.batch_axes, axis=1)
                    for name in ("logits", "features", "auxiliary")
                )
            )
        d_params, d_trunk = one.pullback(d_out)
        grads.append(lax.psum(d_params, stack.batch_axes))
    return grads[::-1]


def gradients(stack: Stack, one: Pass, d_logits):
    """Gradients for the members' parameters of a loss of their logits alone.

    Args:
      one: of `forward`.
      d_logits: [members, B, C], the loss's gradient for the logits of the whole batch.
    """
    d_out = jax.tree.map(jnp.zeros_like, one.outputs)
    d_out = d_out.replace(logits=share(d_logits, stack.batch_axes, axis=1))
    return lax.psum(one.pullback(d_out)[0], stack.batch_axes)


def update(stack: Stack, state: StackState, grads, stats, step, learns) -> StackState:
    """One optimizer step of the members that learn; the others stay bit for bit.

    Args:
      state: what is updated.
      grads: as `gradients` gives them.
      stats: running statistics after the pass that gave the gradients.
      step: int32 scalar, for the learning rate.
      learns: [members] bool.
    """
    updates, opt_state = jax.vmap(stack.optimizer.update)(grads, state.opt_state, state.params)
    rate = stack.learning_rate(step)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    return where(learns, StackState(params, stats, opt_state), state)


def where(mask, new, old):
    """Leaf by leaf, the new members where the mask holds and the old ones elsewhere."""

    def choose(new, old):
        return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)

    return jax.tree.map(choose, new, old)


def put(states, slots, chosen):
    """`states` with the members at these positions replaced."""
    return jax.tree.map(lambda x, y: x.at[slots].set(y), states, chosen)
