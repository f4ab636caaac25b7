"""The compiled step: the file to open first.

`train_step` is one SPMD program, `jax.jit(jax.shard_map(step, mesh))`, over a mesh with
axes `data` (splits the batch) and `peer` (splits the stacks of networks). It gives the
same result, to rounding, on every mesh shape. What crosses devices is logits; and, over the
mesh axes that split a network's batch, its gradients and batch-norm statistics.

Each network runs forward once per batch on the same weights: ranking, mining and losses
all read the logits of that one pass, and its pullback turns their gradient into the
parameters' gradient.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import losses, peers
from orc_jax.data import batches


@flax.struct.dataclass
class State:
    """All that a run must remember: equal states continue equally, bit for bit.

    Attributes:
      step: steps done.
      seed: source of all randomness, together with the step.
      stacks: variables and optimizer state of the networks.
      promotions: [P] how often each peer was promoted since the run began.
      sums: metrics summed over the running epoch; `sums["steps"]` counts its steps.
      failed_at: [P] first step in which the peer's outputs were not finite, or −1.
    """

    step: jax.Array
    seed: jax.Array
    stacks: tuple[peers.StackState, ...]
    promotions: jax.Array
    sums: dict[str, jax.Array]
    failed_at: jax.Array


def streams(seed):
    """Independent random streams of a run: (initial weights, data order, steps)."""
    return jax.random.split(jax.random.key(seed), 3)


def make_train_step(config, group: peers.Group, method):
    """The step of a group and method: (state, train split, order [steps, B]) → state.

    Args:
      config: the whole config; `config.method` goes to the method.
      group: the networks and their mesh.
      method: a module of `orc_jax.methods`.
    """
    apart = method.apart(config.method, group.size)

    def step(state: State, data: batches.OnDevice, order) -> State:
        key = jax.random.fold_in(streams(state.seed)[2], state.step)
        augmentation_key, method_key = jax.random.split(key)

        # The batch: labels of the whole, images of this device's part.
        at = state.step % len(order)
        positions = order[at]
        labels = data.labels[positions]
        moves = batches.draw_augmentation(augmentation_key, config, len(positions))

        def images_at(slots):
            """The augmented images in these slots of the batch; every device has them all."""
            own = jax.tree.map(lambda x: x[slots], (positions, moves))
            return batches.take(data, *own, config.data.pad_mode)

        slots = peers.share(jnp.arange(len(positions)), "data")
        images = images_at(slots)

        # One forward pass of every network. From here on every device knows the logits
        # [P, B, C] of the whole group and batch.
        passes = [
            None
            if apart[list(stack.peers)].all()
            else peers.forward(stack, stack_state, peers.images_of(stack, images))
            for stack, stack_state in zip(group.stacks, state.stacks, strict=True)
        ]
        logits = peers.over_peers(
            group,
            [
                p and peers.over_batch(stack, p[0])
                for stack, p in zip(group.stacks, passes, strict=True)
            ],
        )

        # Roles, teachers that learn first, and the loss: the method's own part.
        teach = partial(_teach, group, images_at, images, state.step)
        stacks, logits, roles, d_logits, metrics = _study(
            config, method, state.stacks, logits, labels, method_key, teach
        )

        # Each network's own gradient, from the one pass above, and its optimizer step.
        stacks = tuple(
            _learn(stack, stack_state, p, d_logits, state.step, roles.learns)
            for stack, stack_state, p in zip(group.stacks, stacks, passes, strict=True)
        )

        finite = jnp.isfinite(losses.cross_entropy(logits, labels)).all(axis=1)
        return State(
            step=state.step + 1,
            seed=state.seed,
            stacks=stacks,
            promotions=state.promotions + roles.promoted,
            sums=jax.tree.map(lambda s, m: jnp.where(at == 0, 0, s) + m, state.sums, metrics),
            failed_at=jnp.where(finite | (state.failed_at >= 0), state.failed_at, state.step),
        )

    return step


def _study(config, method, stacks, logits, labels, key, teach):
    """The phase before the loss, the loss and its gradient for the logits [P, B, C]."""
    stacks, logits, roles, phase_metrics = method.phase(
        config.method, stacks, lax.stop_gradient(logits), labels, key, teach
    )

    def total(logits):
        peer_loss, loss_metrics = method.loss(config.method, logits, labels, roles)
        return peer_loss.sum(), {"loss": peer_loss, **loss_metrics}

    d_logits, loss_metrics = jax.grad(total, has_aux=True)(logits)
    metrics = {
        name: jnp.asarray(phase_metrics.get(name, 0.0) + loss_metrics.get(name, 0.0), jnp.float32)
        for name in sorted(phase_metrics.keys() | loss_metrics.keys())
    }
    metrics["steps"] = jnp.ones(())
    metrics["top1"] = 100.0 * (logits.argmax(axis=-1) == labels).mean(axis=1)
    return stacks, logits, roles, d_logits, metrics


def _learn(stack, stack_state, forward_pass, d_logits, step, learns):
    """The optimizer step of a stack's members that learn from the loss."""
    if forward_pass is None:
        return stack_state
    _, pullback, stats = forward_pass
    grads = peers.gradients(stack, pullback, peers.members(stack, d_logits))
    learns = peers.members(stack, learns)
    return peers.update(stack, stack_state, grads, stats, step, learns)


def _teach(group, images_at, images, step, stacks, logits, teachers, among, at_most, mix, loss):
    """Gives the teachers an optimizer step on mixed images, before they teach.

    Which peers teach is known only at run time, so each stack runs as many networks as
    could be teachers at once, with the teachers' weights gathered into them. (A
    `lax.cond` per peer would run none in vain, but XLA's CPU convolutions are 30 times
    slower inside a conditional.)

    Args:
      stacks, logits: of the group, before.
      teachers: [P] bool, who learns here.
      among: [P] bool, known at compile time: who ever can.
      at_most: how many teachers there can be at once.
      mix: (λ, partner [B]): image b becomes λ x_b + (1−λ) x_partner[b].
      loss: logits [n, B, C] on the mixed images → losses [n].

    Returns:
      Stacks with the taught teachers, logits in which the teachers' are those of their
      new weights on the batch itself, and the teachers' losses [P].
    """
    lam, partner = mix
    mixed = lam * images + (1 - lam) * images_at(peers.share(partner, "data"))

    def total(logits):
        slot_losses = loss(logits)
        return slot_losses.sum(), slot_losses

    new_stacks, taught_logits, taught_losses = [], [], []
    for stack, stack_state in zip(group.stacks, stacks, strict=True):
        if not among[list(stack.peers)].any():
            new_stacks.append(stack_state)
            taught_logits.append(None)
            taught_losses.append(None)
            continue
        active = peers.members(stack, teachers)
        slots = jnp.argsort(~active)[:at_most]
        pupils = peers.select(stack_state, slots)

        mixed_logits, pullback, stats = peers.forward(stack, pupils, peers.images_of(stack, mixed))
        batch_logits = peers.over_batch(stack, mixed_logits)
        d_logits, slot_losses = jax.grad(total, has_aux=True)(batch_logits)
        grads = peers.gradients(stack, pullback, d_logits)
        pupils = peers.update(stack, pupils, grads, stats, step, active[slots])

        # They teach in train mode, by the statistics of this batch, like their students.
        new_logits, _, _ = peers.forward(stack, pupils, peers.images_of(stack, images))
        new_stacks.append(peers.put(stack_state, slots, pupils))
        empty = jnp.zeros((len(active), *logits.shape[1:]))
        taught_logits.append(empty.at[slots].set(peers.over_batch(stack, new_logits)))
        taught_losses.append(jnp.zeros(len(active)).at[slots].set(slot_losses))

    taught = peers.over_peers(group, taught_logits)
    logits = jnp.where(teachers[:, None, None], lax.stop_gradient(taught), logits)
    teacher_losses = jnp.where(teachers, peers.over_peers(group, taught_losses), 0.0)
    return tuple(new_stacks), logits, teacher_losses


@partial(jax.jit, static_argnums=0)
def failures(members: tuple[tuple[int, ...], ...], state: State) -> jax.Array:
    """`state.failed_at`, with the peers added whose weights or statistics are not finite.

    Args:
      members: the peers of every stack.
      state: between two steps.
    """
    broken = {}
    for stack, stack_state in zip(members, state.stacks, strict=True):
        leaves = jax.tree.leaves((stack_state.params, stack_state.stats))
        finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
        broken |= zip(stack, ~jnp.stack(finite).all(axis=0), strict=True)
    broken = jnp.stack([broken[peer] for peer in range(len(broken))])
    return jnp.where((state.failed_at < 0) & broken, state.step, state.failed_at)


def evaluation_batch_size(config, group: peers.Group) -> int:
    """Images of an evaluation step: the config's number, rounded up to fill all devices."""
    devices = group.mesh.size
    return -(-config.eval_batch_size // devices) * devices


def make_evaluation_step(group: peers.Group, batch_size: int):
    """(stacks, test split, batch index, sums) → sums, with one batch more counted.

    The sums are over images and for the P peers followed by the ensemble, whose output is
    the mean of the peers' softmax outputs: correct top-1 and top-5 answers, cross-entropy
    in nats, and (one number) the images counted.
    """

    def step(stacks, data: batches.OnDevice, index, sums):
        images, labels, counts = batches.evaluation_batch(data, index, batch_size)
        images = peers.share(images, "data")
        logits = peers.over_peers(
            group,
            [
                peers.over_batch(stack, peers.predict(stack, s, peers.images_of(stack, images)))
                for stack, s in zip(group.stacks, stacks, strict=True)
            ],
        )
        log_probs = jax.nn.log_softmax(logits)
        ensemble = jax.nn.logsumexp(log_probs, axis=0, b=1 / group.size)
        log_probs = jnp.concatenate([log_probs, ensemble[None]])
        best = lax.top_k(log_probs, min(5, log_probs.shape[-1]))[1] == labels[:, None]
        batch = {
            "top1": best[..., 0],
            "top5": best.any(axis=-1),
            "loss": losses.cross_entropy(log_probs, labels),
        }
        batch = {name: jnp.where(counts, value, 0).sum(axis=1) for name, value in batch.items()}
        batch["images"] = counts.sum()
        return jax.tree.map(lambda s, b: s + b.astype(jnp.float32), sums, batch)

    return step


def evaluation_zeros(group_size: int) -> dict[str, jax.Array]:
    """The sums of `make_evaluation_step` before the first batch."""
    zeros = {name: jnp.zeros(group_size + 1) for name in ("top1", "top5", "loss")}
    return zeros | {"images": jnp.zeros(())}


def init_state(config, group: peers.Group, method, image_shape, num_classes, pretrained) -> State:
    """The state before the first step, placed on the mesh.

    Args:
      config, group, method: of the run.
      image_shape: (height, width, channels).
      num_classes: C.
      pretrained: peer → variables to start from.
    """
    stacks = peers.init(group, streams(config.seed)[0], image_shape, pretrained)
    state = _first_state(config, group, method, num_classes, stacks)
    return jax.device_put(state, state_shardings(group, state))


def abstract_state(config, group: peers.Group, method, image_shape, num_classes: int) -> State:
    """What `init_state` gives, as shapes with their placement; nothing is computed."""
    stacks = peers.abstract(group, image_shape)
    state = _first_state(config, group, method, num_classes, stacks)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        state_shardings(group, state),
    )


def _first_state(config, group, method, num_classes, stacks):
    return State(
        step=np.int32(0),
        seed=np.int32(config.seed),
        stacks=stacks,
        promotions=np.zeros(group.size, np.int32),
        sums=_zero_sums(config, group, method, num_classes),
        failed_at=np.full(group.size, -1, np.int32),
    )


def _zero_sums(config, group, method, num_classes):
    """Zeros for every metric of the method; its networks are not traced for this."""

    def metrics():
        logits = jnp.zeros((group.size, config.batch_size, num_classes))
        labels = jnp.zeros(config.batch_size, jnp.int32)

        def teach(stacks, logits, *args, **kwargs):
            return stacks, logits, jnp.zeros(group.size)

        return _study(config, method, (), logits, labels, jax.random.key(0), teach)[-1]

    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(metrics))


def state_shardings(group: peers.Group, state: State) -> State:
    """For every leaf of a state, how it lies on the mesh."""
    everywhere = NamedSharding(group.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: everywhere, state)
    return shardings.replace(stacks=peers.shardings(group, state.stacks))


def compile_steps(config, group: peers.Group, method):
    """The jitted train and evaluation step; the train step's state is donated.

    Returns:
      (train step, evaluation step), see `make_train_step` and `make_evaluation_step`.
    """
    everywhere = PartitionSpec()
    stacks = tuple(stack.spec for stack in group.stacks)
    state = State(everywhere, everywhere, stacks, everywhere, everywhere, everywhere)

    # Replication is by construction (whole arrays come from all_gather and psum), which
    # check_vma cannot follow through all_gather.
    def spmd(step, in_specs, out_specs, **kwargs):
        mapped = jax.shard_map(
            step, mesh=group.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(mapped, **kwargs)

    train = make_train_step(config, group, method)
    evaluation = make_evaluation_step(group, evaluation_batch_size(config, group))
    return (
        spmd(train, (state, everywhere, everywhere), state, donate_argnums=0),
        spmd(evaluation, (stacks, everywhere, everywhere, everywhere), everywhere),
    )
