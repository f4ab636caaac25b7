"""The compiled step: the file to open first.

One iteration is what `step` in `make_train_step` does, in five parts:

1. the batch: which images, how they are changed and mixed        (data/batches.py, data/mixing.py)
2. one forward pass of every network                              (passes.py)
3. the method: roles, loss, gradients                             (methods/apply.py and NAME.py)
   and teachers that learn before they teach                      (teachers.py)
4. one backward pass and one optimizer step of every network      (passes.py)
5. the next state, with the metrics of this step

Parts 2 to 4 are the iteration as papers describe it. Each network runs forward once per batch on
the same weights: ranking, mining and losses all read the outputs of that one pass, and its
pullback turns their gradients into those of the parameters.

The rest of this file is about devices. A step is one SPMD program, `jax.jit(jax.shard_map(step,
mesh))`, over a mesh with the axes `data` and `peer` (see mesh.py). It gives the same result, to
rounding, on every mesh shape (but for batch norm's statistics if they are taken per device or per
micro-batch). What crosses devices are outputs that the loss reads, streamed images as uint8, and,
over the mesh axes that split a network's batch, its gradients and batch-norm statistics.
"""

from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from orc_jax import compiler, losses, optimizers, passes, peers, teachers
from orc_jax import state as states
from orc_jax.data import batches, mixing
from orc_jax.methods.apply import apply_method, ensembles
from orc_jax.methods.method import Batch, Method
from orc_jax.state import MethodState, State, streams


def make_train_step(config, group: peers.Group, method: Method, *, streamed: bool = False):
    """Make the step of a group and method: (state, train split, order [steps, B]) → state.

    Args:
      config: the whole config; `config.method` goes to the method.
      group: the networks and their mesh.
      method: of `orc_jax.methods`.
      streamed: whether the split is one batch, of images that were cropped while they were read.
    """
    own_images = method.needs.own_augmentation

    def step(state: State, data: batches.OnDevice, order) -> State:
        key = jax.random.fold_in(streams(state.seed)[2], state.step)
        augmentation_key, method_key, mixture_key = jax.random.split(key, 3)

        # 1. The batch: labels of the whole, images of this device's part.
        at = state.step % len(order)
        positions = order[at]
        labels = data.labels[positions]
        shape = (group.size,) * own_images + positions.shape
        changes = batches.draw_augmentation(augmentation_key, config.data, shape, cropped=streamed)
        height, width = data.images.shape[1:3]
        mixture = mixing.draw(mixture_key, config.data, len(positions), (height, width))

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

        # 2. One forward pass of every network. From here on every device knows the outputs of the
        # whole group and batch.
        done = passes.forward_group(group, state.stacks, images, own_images)
        outputs = passes.whole_outputs(group, [stack_pass.outputs for stack_pass in done])
        classes = outputs.logits.shape[-1]
        labels, soft = mixing.labels_of(labels, mixture, config.data.label_smoothing, classes)

        # 3. The method.
        def update_teachers(stacks, logits, update):
            studied = images
            if update.mix is not None:
                lam, partner = update.mix
                studied = lam * images + (1 - lam) * images_at(passes.share(partner, "data"))
            return teachers.update_teachers(
                group, images, studied, state.step, stacks, logits, update
            )

        batch = Batch(
            outputs=outputs,
            labels=labels,
            soft_labels=soft,
            epoch=state.step // len(order),
            memory=state.method.memory,
        )
        own = state.method.variables
        applied = apply_method(
            *(config.method, method, state.stacks, batch, own, method_key),
            update_teachers,
            passes.decided,
        )
        roles = applied.batch.roles

        # 4. Each network's gradient, from its one pass, and its optimizer step.
        grads = passes.backward(group, done, applied.d_outputs)
        # Running statistics follow a network's pass, unless it has had a step and a later pass.
        follows = ~sum((update.learners for update in roles.updates), jnp.zeros(group.size, bool))
        stacks = passes.update_group(
            group, applied.stacks, done, grads, state.step, roles.learns, follows
        )
        own = _update_own(config, state.method, applied, state.step, len(order))

        # 5. What the run remembers.
        finite = jnp.isfinite(losses.cross_entropy(applied.batch.logits, labels)).all(axis=1)
        promoted = 0 if roles.promoted is None else roles.promoted
        sums = jax.tree.map(lambda s, m: jnp.where(at == 0, 0, s) + m, state.sums, applied.metrics)
        return State(
            step=state.step + 1,
            seed=state.seed,
            stacks=stacks,
            method=own,
            promotions=state.promotions + promoted,
            sums=sums,
            failed_at=jnp.where(finite | (state.failed_at >= 0), state.failed_at, state.step),
        )

    return step


def _update_own(config, state: MethodState, applied, step, steps_per_epoch) -> MethodState:
    """Take the optimizer step of the method's own parameters, by the settings of the first peer."""
    if not state.params:
        return state
    # Every device has the whole gradient; the mean keeps their copies equal bit for bit.
    grads = lax.pmean(applied.d_own, ("data", "peer"))
    settings = optimizers.settings(config, config.peers[0])
    optimizer = optimizers.optimizer(settings)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    rate = optimizers.schedule(settings, config.epochs, steps_per_epoch)(step)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    stats = lax.pmean(applied.own_stats, ("data", "peer"))
    return MethodState(params, stats, opt_state, state.memory)


def evaluation_batch_size(config, group: peers.Group) -> int:
    """Return the images of an evaluation step: as configured, rounded up to fill all devices."""
    devices = group.mesh.size
    return -(-config.eval_batch_size // devices) * devices


def make_evaluation_step(config, group: peers.Group, method: Method, batch_size: int):
    """Make the evaluation step: (state, test split, batch index, sums) → sums with one batch more.

    The sums are over images, for the P peers followed by the ensembles: correct top-1 and top-5
    answers, and cross-entropy in nats. The output of the first ensemble is the mean of the peers'
    softmax outputs; the others are those of the method, in their order. The diversity has a number
    for each ensemble; the number of images is one.
    """
    members = [list(range(group.size))]
    members += [e.members(config.method, group.size) for e in method.ensembles.values()]

    def step(state: State, data: batches.OnDevice, index, sums):
        images, labels, counts = batches.evaluation_batch(data, index, batch_size)
        outputs = passes.predict_group(group, state.stacks, passes.share(images, "data"))
        batch = Batch(outputs=outputs, labels=labels, memory=state.method.memory)
        named = ensembles(config.method, method, batch, state.method.variables)
        log_probs = jax.nn.log_softmax(outputs.logits)
        rows = [losses.ensemble(log_probs), *map(jax.nn.log_softmax, named.values())]
        log_probs = jnp.concatenate([log_probs, jnp.stack(rows)])
        best = lax.top_k(log_probs, min(5, log_probs.shape[-1]))[1] == labels[:, None]
        values = {
            "top1": best[..., 0],
            "top5": best.any(axis=-1),
            "loss": losses.cross_entropy(log_probs, labels),
            "diversity": jnp.stack(
                [losses.diversity(outputs.logits[np.array(rows)]) for rows in members]
            ),
        }
        values = {name: jnp.where(counts, value, 0).sum(axis=1) for name, value in values.items()}
        values["images"] = counts.sum()
        return jax.tree.map(lambda s, v: s + v.astype(jnp.float32), sums, values)

    return step


def evaluation_zeros(group_size: int, method: Method) -> dict[str, jax.Array]:
    """Return the sums of `make_evaluation_step` before the first batch."""
    count = 1 + len(method.ensembles)
    zeros = {name: jnp.zeros(group_size + count) for name in ("top1", "top5", "loss")}
    return zeros | {"diversity": jnp.zeros(count), "images": jnp.zeros(())}


def make_prediction_step(group: peers.Group, batch_size: int):
    """Make the prediction step: (stacks, split, batch index) → logits [P, B, C] in eval mode."""

    def step(stacks, data: batches.OnDevice, index):
        images, _, _ = batches.evaluation_batch(data, index, batch_size)
        return passes.predict_group(group, stacks, passes.share(images, "data")).logits

    return step


def compile_steps(config, group: peers.Group, method: Method, *, streamed: bool = False):
    """Compile the train, evaluation and prediction step; the state of the train step is donated.

    Args:
      config, group, method, streamed: see `make_train_step`.

    Returns:
      See `make_train_step`, `make_evaluation_step` and `make_prediction_step`.
    """
    everywhere, by_rows = PartitionSpec(), PartitionSpec("data")
    split: Any = everywhere
    if streamed:
        split = batches.OnDevice._make((by_rows, by_rows, everywhere, everywhere))
    state = states.spec(group)

    # Whole arrays come from all_gather and psum, so they are equal on all devices. check_vma cannot
    # know that, because it does not follow all_gather.
    def spmd(step, in_specs, out_specs, **kwargs):
        @wraps(step)
        def on_whole_batch(first, data, *rest):
            if streamed:
                rows = lax.all_gather((data.images, data.labels), "data", tiled=True)
                data = batches.OnDevice(*rows, data.mean, data.std)
            return step(first, data, *rest)

        if not config.tf32:
            on_whole_batch = jax.default_matmul_precision("highest")(on_whole_batch)
        mapped = jax.shard_map(
            on_whole_batch, mesh=group.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return compiler.jit(mapped, **kwargs)

    train = make_train_step(config, group, method, streamed=streamed)
    size = evaluation_batch_size(config, group)
    return (
        spmd(train, (state, split, everywhere), state, donate_argnums=0),
        spmd(
            make_evaluation_step(config, group, method, size),
            (state, split, everywhere, everywhere),
            everywhere,
        ),
        spmd(make_prediction_step(group, size), (state.stacks, split, everywhere), everywhere),
    )
