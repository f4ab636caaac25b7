"""The compiled step: the file to open first.

`train_step` is one SPMD program, `jax.jit(jax.shard_map(step, mesh))`, over a mesh with
axes `data` (splits the batch) and `peer` (splits the stacks of networks). It gives the
same result, to rounding, on every mesh shape (but for batch norm's statistics if they are taken
per device or per micro-batch). What crosses devices is what the loss reads
(logits, for few methods features too); images that are streamed, as uint8; and, over the mesh
axes that split a network's batch, its gradients and batch-norm statistics.

Each network runs forward once per batch on the same weights: ranking, mining and losses
all read the logits of that one pass, and its pullback turns their gradient into the
parameters' gradient.
"""

from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from orc_jax import losses, optimizers, passes, peers
from orc_jax.data import batches, mixing
from orc_jax.methods.method import Batch, Lesson, Method, Turn
from orc_jax.state import MethodState, State, streams

# The fields of a `Batch` that come from the networks.
DIFFERENTIATED = ("logits", "features", "auxiliary", "trunk")


def make_train_step(config, group: peers.Group, method: Method, *, streamed: bool = False):
    """The step of a group and method: (state, train split, order [steps, B]) → state.

    Args:
      config: the whole config; `config.method` goes to the method.
      group: the networks and their mesh.
      method: of `orc_jax.methods`.
      streamed: whether the split is one batch, of images that were cropped while they were read.
    """

    def step(state: State, data: batches.OnDevice, order) -> State:
        key = jax.random.fold_in(streams(state.seed)[2], state.step)
        augmentation_key, method_key, mixture_key = jax.random.split(key, 3)

        # The batch: labels of the whole, images of this device's part.
        at = state.step % len(order)
        positions = order[at]
        labels = data.labels[positions]
        shape = (group.size,) * method.own_augmentation + positions.shape
        changes = batches.draw_augmentation(augmentation_key, config.data, shape, cropped=streamed)
        mixture = mixing.draw(mixture_key, config.data, len(positions), data.images.shape[1:3])

        def augmented(slots):
            own = jax.tree.map(lambda x: x[..., slots], (positions, changes))
            return batches.take(data, *own, config.data.pad_mode)

        def images_at(slots):
            """The images in these slots of the batch; every device has them all."""
            if mixture is None:
                return augmented(slots)
            mask = mixture.mask[..., None]
            return mask * augmented(slots) + (1 - mask) * augmented(mixture.partner[slots])

        images = images_at(passes.share(jnp.arange(len(positions)), "data"))

        # One forward pass of every network. From here on every device knows the outputs of
        # the whole group and batch.
        done = passes.forward_group(group, state.stacks, images, method.own_augmentation)
        outputs = passes.whole_outputs(group, done)
        classes = outputs["logits"].shape[-1]
        labels, soft = mixing.labels_of(labels, mixture, config.data.label_smoothing, classes)
        batch = Batch(
            labels=labels,
            soft_labels=soft,
            memory=state.method.memory,
            epoch=state.step // len(order),
            **outputs,
        )

        # Roles, teachers that learn first, and the loss: the method's own part.
        teach = partial(_teach, group, images_at, images, state.step)
        stacks, batch, turn, gradients, metrics = study(
            config, method, state.stacks, batch, state.method.params, method_key, teach
        )

        # Each network's own gradient, from the one pass above, and its optimizer step.
        d_outputs, d_own = gradients
        grads = passes.backward(group, done, d_outputs)
        stacks = tuple(
            _learn(stack, stack_state, grad, one, state.step, turn.learns)
            for stack, stack_state, grad, one in zip(group.stacks, stacks, grads, done, strict=True)
        )

        finite = jnp.isfinite(losses.cross_entropy(batch.logits, labels)).all(axis=1)
        promoted = 0 if turn.promoted is None else turn.promoted
        return State(
            step=state.step + 1,
            seed=state.seed,
            stacks=stacks,
            method=_learn_own(config, state.method, d_own, state.step, len(order)),
            promotions=state.promotions + promoted,
            sums=jax.tree.map(lambda s, m: jnp.where(at == 0, 0, s) + m, state.sums, metrics),
            failed_at=jnp.where(finite | (state.failed_at >= 0), state.failed_at, state.step),
        )

    return step


def study(config, method: Method, stacks, batch: Batch, own_params, key, teach):
    """The phase before the loss, the loss, and its gradients.

    Returns:
      Stacks and batch with the taught teachers, the `Turn`, (gradient for the peers'
      outputs, gradient for the method's own parameters), and metrics.
    """
    size = len(batch.logits)
    kinds = np.array(method.kinds(config.method, size))
    turn = Turn(learns=jnp.asarray(kinds != "frozen"))
    if method.phase:
        turn = method.phase(config.method, lax.stop_gradient(batch), key)
    taught = jnp.zeros(size)
    if turn.lesson:
        if method.own_augmentation or method.shares_trunk(config.method):
            raise ValueError("a lesson needs whole networks that all see the same images")
        stacks, logits, taught = teach(stacks, batch.logits, turn.lesson)
        batch = batch._replace(logits=logits)
    batch = batch._replace(plan=turn.plan)
    network = method.network and method.network(config.method, size)

    def total(outputs, own_params):
        seen = batch._replace(**outputs)
        if network:
            seen = seen._replace(own=network.apply({"params": own_params}, seen))
        terms = method.loss(config.method, seen)
        return sum(term.sum() for term in terms.values()), terms

    outputs = {name: getattr(batch, name) for name in DIFFERENTIATED}
    gradients, terms = jax.grad(total, argnums=(0, 1), has_aux=True)(outputs, own_params)

    metrics = dict(turn.metrics)
    metrics["loss"] = taught + sum(term for term in terms.values() if term.ndim)
    metrics |= {f"term/{name}": term.sum() for name, term in terms.items()}
    if turn.lesson:
        metrics["term/intensive"] = taught.sum()
    if turn.promoted is not None:
        metrics["promoted"] = turn.promoted
    metrics["learned"] = turn.learns
    metrics["top1"] = 100.0 * (batch.logits.argmax(axis=-1) == batch.labels).mean(axis=1)
    metrics["diversity"] = losses.diversity(batch.logits).mean()
    metrics["steps"] = jnp.ones(())
    # Sorted, so that the program is the same in every process and is found in the cache.
    metrics = {name: jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)}
    return stacks, batch, turn, gradients, metrics


def _learn(stack, stack_state, grads, one, step, learns):
    """The optimizer step of a stack's members that learn from the loss."""
    if grads is None:
        return stack_state
    learns = learns.any()[None] if stack.part == "trunk" else passes.members(stack, learns)
    return passes.update(stack, stack_state, grads, one.stats, step, learns)


def _learn_own(config, state: MethodState, grads, step, steps_per_epoch) -> MethodState:
    """The optimizer step of the method's own parameters, with the run's settings."""
    if not state.params:
        return state
    # Every device has the whole gradient; the mean keeps their copies equal bit for bit.
    grads = lax.pmean(grads, ("data", "peer"))
    optimizer = optimizers.optimizer(config.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    rate = optimizers.schedule(config.optimizer, config.epochs, steps_per_epoch)(step)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    return MethodState(params, opt_state, state.memory)


def _teach(group, images_at, images, step, stacks, logits, lesson: Lesson):
    """Gives the pupils of a lesson their optimizer step on mixed images.

    Which peers these are is known only at run time, so each stack runs as many networks as
    could be pupils at once, with the pupils' weights gathered into them. (A `lax.cond` per
    peer would run none in vain, but XLA's CPU convolutions are 30 times slower inside a
    conditional.)

    Returns:
      Stacks with the taught peers, logits in which theirs are those of their new weights on
      the batch itself, and their losses [P].
    """
    lam, partner = lesson.mix
    mixed = lam * images + (1 - lam) * images_at(passes.share(partner, "data"))

    def total(logits):
        slot_losses = lesson.loss(logits)
        return slot_losses.sum(), slot_losses

    new_stacks, taught_logits, taught_losses = [], [], []
    for stack, stack_state in zip(group.stacks, stacks, strict=True):
        if not lesson.among[list(stack.peers)].any():
            new_stacks.append(stack_state)
            taught_logits.append(None)
            taught_losses.append(None)
            continue
        active = passes.members(stack, lesson.pupils)
        slots = jnp.argsort(~active)[: lesson.at_most]
        pupils = peers.select(stack_state, slots)

        learned = passes.forward(stack, pupils, passes.images_of(stack, mixed))
        batch_logits = passes.over_batch(stack, learned.outputs.logits)
        d_logits, slot_losses = jax.grad(total, has_aux=True)(batch_logits)
        grads = passes.gradients(stack, learned, d_logits)
        pupils = passes.update(stack, pupils, grads, learned.stats, step, active[slots])

        # They teach in train mode, by the statistics of this batch, like their students.
        teaching = passes.forward(stack, pupils, passes.images_of(stack, images))
        new_logits = passes.over_batch(stack, teaching.outputs.logits)
        new_stacks.append(passes.put(stack_state, slots, pupils))
        empty = jnp.zeros((len(active), *logits.shape[1:]))
        taught_logits.append(empty.at[slots].set(new_logits))
        taught_losses.append(jnp.zeros(len(active)).at[slots].set(slot_losses))

    def of_pupils(parts, others):
        rows = passes.over_peers(group, parts)
        return jnp.stack([o if row is None else row for row, o in zip(rows, others, strict=True)])

    mask = lesson.pupils
    taught = lax.stop_gradient(of_pupils(taught_logits, logits))
    losses_of = of_pupils(taught_losses, jnp.zeros(len(mask)))
    logits = jnp.where(mask[:, None, None], taught, logits)
    return tuple(new_stacks), logits, jnp.where(mask, losses_of, 0.0)


def evaluation_batch_size(config, group: peers.Group) -> int:
    """Images of an evaluation step: the config's number, rounded up to fill all devices."""
    devices = group.mesh.size
    return -(-config.eval_batch_size // devices) * devices


def make_evaluation_step(group: peers.Group, batch_size: int):
    """(stacks, test split, batch index, sums) → sums, with one batch more counted.

    The sums are over images and for the P peers followed by the ensemble, whose output is
    the mean of the peers' softmax outputs: correct top-1 and top-5 answers, cross-entropy
    in nats; and, one number each, the diversity and the images counted.
    """

    def step(stacks, data: batches.OnDevice, index, sums):
        images, labels, counts = batches.evaluation_batch(data, index, batch_size)
        logits = passes.predict_group(group, stacks, passes.share(images, "data"))
        log_probs = jax.nn.log_softmax(logits)
        log_probs = jnp.concatenate([log_probs, losses.ensemble(log_probs)[None]])
        best = lax.top_k(log_probs, min(5, log_probs.shape[-1]))[1] == labels[:, None]
        batch = {
            "top1": best[..., 0],
            "top5": best.any(axis=-1),
            "loss": losses.cross_entropy(log_probs, labels),
        }
        batch["diversity"] = losses.diversity(logits)[None]
        batch = {name: jnp.where(counts, value, 0).sum(axis=1) for name, value in batch.items()}
        batch["images"] = counts.sum()
        return jax.tree.map(lambda s, b: s + b.astype(jnp.float32), sums, batch)

    return step


def evaluation_zeros(group_size: int) -> dict[str, jax.Array]:
    """The sums of `make_evaluation_step` before the first batch."""
    zeros = {name: jnp.zeros(group_size + 1) for name in ("top1", "top5", "loss")}
    return zeros | {"diversity": jnp.zeros(1), "images": jnp.zeros(())}


def make_prediction_step(group: peers.Group, batch_size: int):
    """(stacks, split, batch index) → logits [P, B, C] in eval mode."""

    def step(stacks, data: batches.OnDevice, index):
        images, _, _ = batches.evaluation_batch(data, index, batch_size)
        return passes.predict_group(group, stacks, passes.share(images, "data"))

    return step


def compile_steps(config, group: peers.Group, method: Method, *, streamed: bool = False):
    """The jitted train, evaluation and prediction step; the train step's state is donated.

    Args:
      config, group, method: see `make_train_step`.
      streamed: whether a split is one batch, of which every device was handed its rows.

    Returns:
      See `make_train_step`, `make_evaluation_step` and `make_prediction_step`.
    """
    everywhere, by_rows = PartitionSpec(), PartitionSpec("data")
    split = everywhere
    if streamed:
        split = batches.OnDevice(by_rows, by_rows, everywhere, everywhere)
    stacks = tuple(stack.spec for stack in group.stacks)
    state = State(*[everywhere] * 2, stacks, *[everywhere] * 4)

    # Replication is by construction (whole arrays come from all_gather and psum), which
    # check_vma cannot follow through all_gather.
    def spmd(step, in_specs, out_specs, **kwargs):
        @wraps(step)
        def on_whole_batch(first, data, *rest):
            if streamed:
                rows = lax.all_gather((data.images, data.labels), "data", tiled=True)
                data = batches.OnDevice(*rows, data.mean, data.std)
            return step(first, data, *rest)

        mapped = jax.shard_map(
            on_whole_batch, mesh=group.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(mapped, **kwargs)

    train = make_train_step(config, group, method, streamed=streamed)
    size = evaluation_batch_size(config, group)
    return (
        spmd(train, (state, split, everywhere), state, donate_argnums=0),
        spmd(
            make_evaluation_step(group, size),
            (stacks, split, everywhere, everywhere),
            everywhere,
        ),
        spmd(make_prediction_step(group, size), (stacks, split, everywhere), everywhere),
    )
