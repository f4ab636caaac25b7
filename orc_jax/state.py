"""What a run remembers, and what it begins with."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import optimizers, passes, peers
from orc_jax.mesh import put_global
from orc_jax.methods.apply import apply_method
from orc_jax.methods.method import Batch, Method


@flax.struct.dataclass
class MethodState:
    """What a method itself remembers.

    Attributes:
      params, stats, opt_state: of its own network (`Method.own_network`); empty without one.
      memory: see `Memory`.
    """

    params: Any
    stats: Any
    opt_state: Any
    memory: Any

    @property
    def variables(self) -> dict:
        """The variables of the own network."""
        return {"params": self.params, "batch_stats": self.stats}


@flax.struct.dataclass
class State:
    """All that a run must remember: equal states continue equally, bit for bit.

    Attributes:
      step: int32, steps done.
      seed: int32, source of all randomness, together with the step.
      stacks: a `peers.StackState` for every stack.
      method: the `MethodState`.
      promotions: [P] int32, how often each peer was promoted since the run began.
      sums: name → metric summed over the running epoch; `sums["steps"]` counts its steps.
      failed_at: [P] int32, first step in which the peer's outputs were not finite, or −1.
    """

    step: Any
    seed: Any
    stacks: Any
    method: Any
    promotions: Any
    sums: Any
    failed_at: Any


def streams(seed):
    """Split a seed into a run's independent streams: (initial weights, data order, steps)."""
    return jax.random.split(jax.random.key(seed), 3)


def spec(group: peers.Group) -> State:
    """Return how a state lies on the mesh, as a prefix of it: only stacks are ever split."""
    everywhere = PartitionSpec()
    return State(
        step=everywhere,
        seed=everywhere,
        stacks=tuple(stack.spec for stack in group.stacks),
        method=everywhere,
        promotions=everywhere,
        sums=everywhere,
        failed_at=everywhere,
    )


def shardings(group: peers.Group, state: State) -> State:
    """Return for every leaf of a state how it lies on the mesh."""

    def of_part(spec, part):
        return jax.tree.map(lambda _: NamedSharding(group.mesh, spec), part)

    return jax.tree.map(of_part, spec(group), state, is_leaf=lambda x: isinstance(x, PartitionSpec))


def init_state(
    config, group: peers.Group, method: Method, image_shape, pretrained, sums=None
) -> State:
    """Make the state before the first step and put it on the mesh.

    Args:
      config, group, method: of the run.
      image_shape: (height, width, channels).
      pretrained: peer → variables to start from.
      sums: of `abstract_state`, if the caller has it, so that the method is not traced again.
    """
    stacks = peers.init(group, streams(config.seed)[0], image_shape, pretrained)
    own = jax.jit(lambda: _init_own(config, group, method, image_shape))()
    sums = sums or _sums(config, group, method, image_shape, own)
    state = _first_state(config, group, stacks, own, sums)
    return put_global(state, shardings(group, state))


def abstract_state(config, group: peers.Group, method: Method, image_shape) -> State:
    """Return what `init_state` gives, as shapes with their placement; nothing is computed."""
    stacks = peers.abstract(group, image_shape)
    own = jax.eval_shape(lambda: _init_own(config, group, method, image_shape))
    sums = _sums(config, group, method, image_shape, own)
    state = _first_state(config, group, stacks, own, sums)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings(group, state),
    )


def _first_state(config, group, stacks, own, sums) -> State:
    return State(
        step=np.int32(0),
        seed=np.int32(config.seed),
        stacks=stacks,
        method=own,
        promotions=np.zeros(group.size, np.int32),
        sums=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums),
        failed_at=np.full(group.size, -1, np.int32),
    )


def _empty_batch(config, group, method, image_shape) -> Batch:
    """Return a batch of zeros, for the shapes of what depends on one."""
    images = jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.float32)
    rows: list = [None] * group.size
    for stack in group.stacks:
        outputs, _ = jax.eval_shape(
            lambda images, s=stack: peers.fresh_outputs(s, jax.random.key(0), images), images
        )
        for peer in stack.peers:
            rows[peer] = jax.tree.map(lambda x: jnp.zeros(x.shape), outputs)
    return Batch(
        outputs=passes.stack_peers(rows),
        labels=jnp.zeros(config.batch_size, jnp.int32),
        memory=method.memory.first(config.method, group.size),
        epoch=jnp.int32(0),
    )


def _init_own(config, group, method, image_shape) -> MethodState:
    memory = method.memory.first(config.method, group.size)
    if not method.own_network:
        return MethodState({}, {}, {}, memory)
    network = method.own_network(config.method, group.size)
    key = jax.random.fold_in(streams(config.seed)[0], group.size)  # peers have 0 to P−1
    variables = network.init(key, _empty_batch(config, group, method, image_shape), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    optimizer = optimizers.optimizer(optimizers.settings(config, config.peers[0]))
    return MethodState(params, stats, optimizer.init(params), memory)


def _sums(config, group, method, image_shape, own):
    """Return the shape of every metric of the method."""

    def metrics(variables):
        def update_teachers(stacks, logits, update):
            return stacks, logits, jnp.zeros(group.size)

        batch, key = _empty_batch(config, group, method, image_shape), jax.random.key(0)
        return apply_method(
            config.method, method, (), batch, variables, key, update_teachers
        ).metrics

    return jax.eval_shape(metrics, own.variables)


@partial(jax.jit, static_argnums=(0, 1))
def failures(members: tuple[tuple[int, ...], ...], everywhere: NamedSharding, state: State):
    """Return `state.failed_at`, with the peers added whose variables are not finite.

    Args:
      members: the peers of every stack.
      everywhere: a copy on every device of the mesh.
      state: between two steps.
    """

    def not_finite(variables, axes):
        leaves = jax.tree.leaves((variables.params, variables.stats))
        return sum(~jnp.isfinite(x).all(axis=tuple(range(axes, x.ndim))) for x in leaves)

    broken = jnp.zeros(sum(map(len, members)), bool)
    for stack, stack_state in zip(members, state.stacks, strict=True):
        bad = not_finite(stack_state.members, 1) + not_finite(stack_state.trunk, 0)
        broken = broken.at[np.array(stack)].set(bad > 0)
    failed_at = jnp.where((state.failed_at < 0) & broken, state.step, state.failed_at)
    return jax.lax.with_sharding_constraint(failed_at, everywhere)
