"""The state before the first step: initial weights, and zeros for what is summed."""

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import optimizers, passes, peers
from orc_jax.mesh import put_global
from orc_jax.methods.method import Batch, Method
from orc_jax.state import MethodState, State, state_shardings, streams
from orc_jax.step import study


def init_state(config, group: peers.Group, method: Method, image_shape, pretrained) -> State:
    """The state before the first step, placed on the mesh.

    Args:
      config, group, method: of the run.
      image_shape: (height, width, channels).
      pretrained: peer → variables to start from.
    """
    stacks = peers.init(group, streams(config.seed)[0], image_shape, pretrained)
    own = jax.jit(lambda: _init_own(config, group, method, image_shape))()
    state = _first_state(config, group, method, image_shape, stacks, own)
    return put_global(state, state_shardings(group, state))


def abstract_state(config, group: peers.Group, method: Method, image_shape) -> State:
    """What `init_state` gives, as shapes with their placement; nothing is computed."""
    stacks = peers.abstract(group, image_shape)
    own = jax.eval_shape(lambda: _init_own(config, group, method, image_shape))
    state = _first_state(config, group, method, image_shape, stacks, own)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        state_shardings(group, state),
    )


def _first_state(config, group, method, image_shape, stacks, own):
    return State(
        step=np.int32(0),
        seed=np.int32(config.seed),
        stacks=stacks,
        method=own,
        promotions=np.zeros(group.size, np.int32),
        sums=_zero_sums(config, group, method, image_shape, own),
        failed_at=np.full(group.size, -1, np.int32),
    )


def _no_batch(config, group, method, image_shape) -> Batch:
    """A batch of zeros, for the shapes of what depends on it."""
    outputs = _no_outputs(group, image_shape, config.batch_size)
    labels = jnp.zeros(config.batch_size, jnp.int32)
    memory = method.memory(config.method, group.size)
    return Batch(labels=labels, memory=memory, epoch=jnp.int32(0), **outputs)


def _no_outputs(group: peers.Group, image_shape, batch_size: int) -> dict:
    """Zeros in the shapes of `passes.whole_outputs`."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    rows: dict = {}
    trunk = None
    for stack in group.stacks:
        outputs, variables = jax.eval_shape(
            lambda x, s=stack: peers.fresh_outputs(s, jax.random.key(0), x), images
        )
        rows.update(dict.fromkeys(stack.peers, outputs))
        if stack.part == "trunk":
            x = jax.eval_shape(
                lambda v, x, s=stack: s.module.apply(v, x, train=False, method="trunk"),
                variables,
                images,
            )
            trunk = jnp.zeros((batch_size, x.shape[-1]))
    rows = [jax.tree.map(lambda x: jnp.zeros(x.shape), rows[i]) for i in range(group.size)]
    return passes.by_field(rows) | {"trunk": trunk}


def _init_own(config, group, method, image_shape) -> MethodState:
    memory = method.memory(config.method, group.size)
    if not method.network:
        return MethodState({}, {}, memory)
    network = method.network(config.method, group.size)
    key = jax.random.fold_in(streams(config.seed)[0], group.size)  # peers have 0 to P−1
    params = network.init(key, _no_batch(config, group, method, image_shape))["params"]
    return MethodState(params, optimizers.optimizer(config.optimizer).init(params), memory)


def _zero_sums(config, group, method, image_shape, own):
    """Zeros for every metric of the method."""

    def metrics(params):
        batch = _no_batch(config, group, method, image_shape)

        def teach(stacks, logits, lesson):
            return stacks, logits, jnp.zeros(group.size)

        return study(config, method, (), batch, params, jax.random.key(0), teach)[-1]

    sums = jax.eval_shape(metrics, own.params)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums)
