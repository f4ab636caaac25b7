"""What a run remembers."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import peers


@flax.struct.dataclass
class MethodState:
    """What a method itself remembers.

    Attributes:
      params, opt_state: of its own network (`Method.network`); empty without one.
      memory: `Method.memory`.
    """

    params: Any
    opt_state: Any
    memory: Any


@flax.struct.dataclass
class State:
    """All that a run must remember: equal states continue equally, bit for bit.

    Attributes:
      step: steps done.
      seed: source of all randomness, together with the step.
      stacks: variables and optimizer state of the networks.
      method: of the method itself.
      promotions: [P] how often each peer was promoted since the run began.
      sums: metrics summed over the running epoch; `sums["steps"]` counts its steps.
      failed_at: [P] first step in which the peer's outputs were not finite, or −1.
    """

    step: jax.Array
    seed: jax.Array
    stacks: tuple[peers.StackState, ...]
    method: MethodState
    promotions: jax.Array
    sums: dict[str, jax.Array]
    failed_at: jax.Array


def streams(seed):
    """Independent random streams of a run: (initial weights, data order, steps)."""
    return jax.random.split(jax.random.key(seed), 3)


def state_shardings(group: peers.Group, state: State) -> State:
    """For every leaf of a state, how it lies on the mesh."""
    everywhere = NamedSharding(group.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: everywhere, state)
    return shardings.replace(stacks=peers.shardings(group, state.stacks))


@partial(jax.jit, static_argnums=(0, 1))
def failures(members: tuple[tuple[int, ...], ...], everywhere: NamedSharding, state: State):
    """`state.failed_at`, with the peers added whose weights or statistics are not finite.

    Args:
      members: the peers of every stack; all of them for a trunk.
      everywhere: a copy on every device of the mesh.
      state: between two steps.
    """
    broken = {}
    for stack, stack_state in zip(members, state.stacks, strict=True):
        leaves = jax.tree.leaves((stack_state.params, stack_state.stats))
        finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
        bad = jnp.broadcast_to(~jnp.stack(finite).all(axis=0), len(stack))
        for peer, is_bad in zip(stack, bad, strict=True):
            broken[peer] = broken.get(peer, False) | is_bad
    broken = jnp.stack([broken[peer] for peer in range(len(broken))])
    failed_at = jnp.where((state.failed_at < 0) & broken, state.step, state.failed_at)
    return jax.lax.with_sharding_constraint(failed_at, everywhere)
