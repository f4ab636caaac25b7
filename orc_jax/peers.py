"""A group of networks as stacked parameter pytrees: build, place, run, update.

Peers of one network and one optimizer are one `Stack`: every leaf of its variables has a
leading peer axis and `jax.vmap` maps the network over it. A group is several stacks; its
logits are put together in peer order.

The mesh has two axes. A stack that divides over `peer` is split over it: each device then
trains its own networks on the images of its `data` row, and along `peer` only logits are
exchanged. A stack that does not divide (a single pivot, say) is copied to every device
instead, and the images are split over `peer` as well. In both cases what the functions
below call "whole" is an array of the whole group and batch, equal on all devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from orc_jax import models, optimizers
from orc_jax.models.network import Network


def batch_axes(split: bool) -> tuple[str, ...]:
    """The mesh axes that split the batch of a stack, which `peer` splits or does not."""
    return ("data",) if split else ("data", "peer")


class Stack(NamedTuple):
    """Peers of one network and one optimizer.

    Attributes:
      name: the network's name.
      peers: positions of its members in the group.
      module: the network.
      optimizer: gradient → update, without the learning rate.
      learning_rate: step → learning rate.
      split: whether the mesh axis `peer` splits the members (else it splits the batch).
    """

    name: str
    peers: tuple[int, ...]
    module: Network
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    split: bool

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the batch."""
        return batch_axes(self.split)

    @property
    def spec(self) -> PartitionSpec:
        """How the leading axis of its variables lies on the mesh."""
        return PartitionSpec("peer") if self.split else PartitionSpec()


class Group(NamedTuple):
    """All the networks that train together."""

    stacks: tuple[Stack, ...]
    mesh: Mesh

    @property
    def size(self) -> int:
        return sum(len(stack.peers) for stack in self.stacks)

    @property
    def names(self) -> list[str]:
        """The networks' names in peer order."""
        return [name for _, name in sorted((p, s.name) for s in self.stacks for p in s.peers)]


@flax.struct.dataclass
class StackState:
    """Variables of a stack; every leaf has the peer axis first."""

    params: Any
    stats: Any
    opt_state: Any


def layout(config, apart: np.ndarray) -> list[tuple[str, ConfigDict, list[int]]]:
    """Which peers are one stack: (network, optimizer settings, positions) of each.

    Args:
      config: the whole, checked config.
      apart: [P] bool; peers that do not run with the others (a pivot) are stacked apart.
    """
    found: dict = {}
    for i, peer in enumerate(config.peers):
        settings = optimizers.settings(config, peer)
        key = (peer.model, bool(apart[i]), settings.to_json(sort_keys=True))
        found.setdefault(key, (peer.model, settings, []))[2].append(i)
    return list(found.values())


def build(config, num_classes: int, steps_per_epoch: int, mesh: Mesh, apart: np.ndarray) -> Group:
    """The group that a config describes.

    Args:
      config, apart: see `layout`.
      num_classes: outputs C of every network.
      steps_per_epoch: the unit of the learning-rate schedules.
      mesh: devices, with axes `data` and `peer`.
    """
    stacks = []
    for name, settings, members in layout(config, apart):
        split = mesh.shape["peer"] > 1 and len(members) % mesh.shape["peer"] == 0
        stacks.append(
            Stack(
                name=name,
                peers=tuple(members),
                module=models.create(name, num_classes, batch_axes(split)),
                optimizer=optimizers.optimizer(settings),
                learning_rate=optimizers.schedule(settings, config.epochs, steps_per_epoch),
                split=split,
            )
        )
    return Group(tuple(stacks), mesh)


def abstract_variables(stack: Stack, image_shape: tuple[int, int, int]):
    """Shapes of one member's variables {"params", "batch_stats"}; nothing is computed."""
    return jax.eval_shape(_initialiser(stack, image_shape), jax.random.key(0))


def _initialiser(stack, image_shape):
    return lambda key: stack.module.init(key, jnp.zeros((1, *image_shape)), train=False)


def init(group: Group, key, image_shape, pretrained: dict[int, Any]) -> tuple[StackState, ...]:
    """Initial variables of the group.

    Args:
      group: the networks.
      key: a fresh peer's weights depend on it and on the peer's position alone.
      image_shape: (height, width, channels).
      pretrained: peer → variables {"params", "batch_stats"} to start from instead.
    """
    # One member at a time: random numbers of a whole stack compile three times as long.
    fresh = {stack.name: jax.jit(_initialiser(stack, image_shape)) for stack in group.stacks}
    states = []
    for stack in group.stacks:
        variables = [
            pretrained[peer]
            if peer in pretrained
            else fresh[stack.name](jax.random.fold_in(key, peer))
            for peer in stack.peers
        ]
        states.append(jax.jit(lambda *v, stack=stack: _stacked(stack, v))(*variables))
    return tuple(states)


def abstract(group: Group, image_shape: tuple[int, int, int]) -> tuple[StackState, ...]:
    """Shapes of what `init` gives; nothing is computed."""
    return tuple(
        jax.eval_shape(
            lambda *v, stack=stack: _stacked(stack, v),
            *[abstract_variables(stack, image_shape)] * len(stack.peers),
        )
        for stack in group.stacks
    )


def _stacked(stack, variables):
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
    params = variables["params"]
    return StackState(params, variables["batch_stats"], jax.vmap(stack.optimizer.init)(params))


def shardings(group: Group, states: tuple[StackState, ...]) -> tuple[StackState, ...]:
    """For every leaf, how it lies on the mesh."""
    return tuple(
        jax.tree.map(lambda _, s=stack: NamedSharding(group.mesh, s.spec), state)
        for stack, state in zip(group.stacks, states, strict=True)
    )


# --- Inside the step: what follows runs under `jax.shard_map`. ---


def share(x, axes, axis: int = 0):
    """This device's part of a whole array."""
    size = x.shape[axis] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size, axis)


def members(stack: Stack, x):
    """The entries of a whole [P, ...] array that belong to this device's members."""
    x = jnp.asarray(x)[np.array(stack.peers)]
    return share(x, "peer") if stack.split else x


def over_batch(stack: Stack, x):
    """[members, B, ...] of the whole batch from this device's [members, images, ...]."""
    return lax.all_gather(x, stack.batch_axes, axis=1, tiled=True)


def over_peers(group: Group, parts: list):
    """[P, ...] of the whole group from each stack's [members, ...].

    Peers of a stack whose part is None are zero.
    """
    rows = {}
    for stack, part in zip(group.stacks, parts, strict=True):
        if part is not None:
            part = lax.all_gather(part, "peer", tiled=True) if stack.split else part
            rows.update(zip(stack.peers, part, strict=True))
    nothing = jnp.zeros_like(next(iter(rows.values())))
    return jnp.stack([rows.get(peer, nothing) for peer in range(group.size)])


def images_of(stack: Stack, images):
    """The part of a `data` row's images that this device runs through the stack."""
    return images if stack.split else share(images, "peer")


def forward(stack: Stack, state: StackState, images) -> tuple[jax.Array, Callable, Any]:
    """One forward pass in train mode of this device's members on its images.

    Args:
      images: [images, H, W, channels].

    Returns:
      Logits [members, images, C], the pullback (see `gradients`) and the new running
      statistics.
    """

    def logits(params):
        def one(params, stats):
            variables = {"params": params, "batch_stats": stats}
            return stack.module.apply(variables, images, train=True, mutable="batch_stats")

        out, updated = jax.vmap(one)(params, state.stats)
        return out, updated["batch_stats"]

    return jax.vjp(logits, state.params, has_aux=True)


def predict(stack: Stack, state: StackState, images):
    """Logits [members, images, C] in eval mode (running statistics)."""

    def one(params, stats):
        variables = {"params": params, "batch_stats": stats}
        return stack.module.apply(variables, images, train=False)

    return jax.vmap(one)(state.params, state.stats)


def gradients(stack: Stack, pullback: Callable, d_logits):
    """Gradients for the members' parameters of a loss over the whole batch.

    Args:
      pullback: of `forward`.
      d_logits: [members, B, C], the loss's gradient for the logits of the whole batch.
    """
    (grads,) = pullback(share(d_logits, stack.batch_axes, axis=1))
    return lax.psum(grads, stack.batch_axes)


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


def select(states, slots):
    """The members at these positions of the leading axis."""
    return jax.tree.map(lambda x: x[slots], states)


def put(states, slots, chosen):
    """`states` with the members at these positions replaced."""
    return jax.tree.map(lambda x, y: x.at[slots].set(y), states, chosen)
