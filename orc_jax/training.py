"""The loop: data, state, steps, evaluation, checkpoints, metrics."""

import collections
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import peers
from orc_jax.data import batches, stream
from orc_jax.errors import UserError
from orc_jax.evaluation import evaluate_split, show_table
from orc_jax.prepare import Setup, prepare
from orc_jax.runtime import display, metrics, processes
from orc_jax.runtime.checkpoints import Checkpoints, has_checkpoint
from orc_jax.runtime.profile import Profiler
from orc_jax.runtime.signals import Interruption
from orc_jax.runtime.workdir import Lock, began, check, create
from orc_jax.state import State, abstract_state, failures, init_state, streams
from orc_jax.step import compile_steps, evaluation_batch_size
from orc_jax.trained import saved


class Result(NamedTuple):
    """What `train` gives back.

    Attributes:
      state: after the last step.
      metrics: the last epoch's record (see `metrics`); empty if none was finished.
      finished: False after SIGTERM or Ctrl-C.
    """

    state: State
    metrics: dict
    finished: bool


def train(config, workdir: str | Path, data: tuple | None = None) -> Result:
    """Trains the group that a config describes, or goes on where it was stopped.

    Args:
      config: the whole config, e.g. from `configs/digits.py` or `orc_jax.default_config`.
      workdir: where config, metrics, roles and checkpoints go. The same call again
        resumes there.
      data: arrays to train on in place of a named data set, (train images, train labels,
        test images, test labels): uint8 [N, H, W(, channels)] and integers [N].

    Returns:
      The final state and metrics.

    Raises:
      UserError: wrong config, data or checkpoint, another run's work directory, or a loss
        that is no longer finite.
    """
    called, workdir = time.monotonic(), Path(workdir)
    if data is not None:
        config = config.copy_and_resolve_references()
        config.data.name = "arrays"
    # On a machine of other memory too, a run goes on as it began.
    streamed = began(workdir).streamed if (workdir / "config.json").exists() else None
    setup = prepare(config, data, streamed)
    config = setup.config
    check(workdir, config, setup.dataset)
    weights = {}
    if not has_checkpoint(workdir):
        weights = saved.pretrained(setup.group, config, setup.dataset.image_shape)
    processes.barrier("the work directory is checked")
    with Lock(workdir), Interruption() as interruption:
        create(workdir, config, setup.dataset, setup.images, len(setup.train_split.labels))
        processes.barrier("the work directory is this run's")
        with Checkpoints(workdir, read_only=False) as checkpoints:
            return _train(setup, workdir, weights, checkpoints, interruption, called)


def _train(setup, workdir, weights, checkpoints, interruption, called) -> Result:
    config, group, per_epoch = setup.config, setup.group, setup.steps_per_epoch
    train_step, evaluation_step, prediction_step = compile_steps(
        config, group, setup.method, streamed=setup.streamed
    )
    renew = renewal(setup, prediction_step)
    step = checkpoints.step("last") or 0
    if step:
        state = checkpoints.restore(step, abstract_state(*setup.state_args()))
    else:
        state = init_state(*setup.state_args(), weights)
    records = [record for record in metrics.read(workdir) if record["step"] <= step]
    record = records[-1] if records else {}
    best = max((_score(setup, record) for record in records if "test" in record), default=-1.0)

    shown = display.Display(group.names, config.epochs, per_epoch, config.batch_size)
    profiler = Profiler(config.profile and processes.is_main(), workdir)
    with metrics.Writers(workdir, group.names, step) as writers, profiler, shown:
        _introduce(setup, workdir, step, shown)
        shown.begin(step)
        running = collections.deque()
        following = training_batches(setup, step)
        for epoch in range(step // per_epoch, config.epochs):
            if renew and step == epoch * per_epoch:
                state = renew(state)
            epoch_began, first = time.monotonic(), step
            while step < (epoch + 1) * per_epoch and not interruption.stops_before(step):
                split, order = next(following)
                profiler.before_step(state)
                with jax.transfer_guard("disallow"):
                    state = train_step(state, split, order)
                    running.append(jnp.copy(state.step))
                step += 1
                if called:
                    running[0].block_until_ready()
                    shown.say(f"first step after {time.monotonic() - called:.1f} s")
                    called = None
                # Two steps are enough in flight: a signal must not wait for thirty.
                if len(running) > 2:
                    running.popleft().block_until_ready()
                if shown.due():
                    # Of several processes all must compute the same, whatever their clocks say.
                    if jax.process_count() == 1:
                        _check_finite(setup, state, checkpoints)
                    shown.update(step, _training(state))
            _check_finite(setup, state, checkpoints)
            if step < (epoch + 1) * per_epoch:
                checkpoints.save(step, state, None)
                checkpoints.wait()
                shown.say(
                    f"stopped by {interruption.requested} at step {step}: checkpoint saved, "
                    "the same command goes on from here"
                )
                return Result(state, record, finished=False)

            seconds = time.monotonic() - epoch_began
            record = {
                "epoch": epoch + 1,
                "step": step,
                "seconds": round(seconds, 3),
                "images_per_second": round((step - first) * config.batch_size / seconds, 1),
                "train": _training(state),
            }
            is_last = epoch + 1 == config.epochs
            score = None
            if (epoch + 1) % config.eval_every == 0 or is_last:
                record["test"] = evaluate_split(setup, evaluation_step, state.stacks)
                score = _score(setup, record)
            writers.write(record)
            shown.epoch(record)
            is_best = score is not None and score > best
            if (epoch + 1) % config.checkpoint_every == 0 or is_last or is_best:
                checkpoints.save(step, state, score)
            best = score if is_best else best
    checkpoints.wait()
    if "test" not in record:  # a finished run whose metrics were deleted
        record["test"] = evaluate_split(setup, evaluation_step, state.stacks)
    _save_kept(setup, workdir, state)
    title = f"{config.method.name} after epoch {config.epochs}"
    show_table(setup, title, record["test"], state.promotions.tolist(), step)
    return Result(state, record, finished=True)


def training_batches(setup: Setup, step: int) -> Iterator[tuple]:
    """(split, order) for the train step, from this step on to the last one.

    The split is all images on the devices and the order that of the epoch; or, for images
    that are streamed, the split is one batch, in the order in which it came.
    """
    config, split = setup.config, setup.train_split
    last, shape = config.epochs * setup.steps_per_epoch, (setup.steps_per_epoch, config.batch_size)
    if setup.streamed:
        order = setup.on_mesh(np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape))
        rows = setup.own_rows(config.batch_size)
        for batch in stream.training(
            split, config.seed, config.batch_size, config.epochs, step, rows
        ):
            yield setup.batch_on_mesh(split, *batch), order
        return
    epoch_order = jax.jit(
        batches.epoch_order, static_argnums=(2, 3), out_shardings=setup.everywhere
    )
    key, count = streams(config.seed)[1], len(split.labels)
    for at in range(step, last):
        if at == step or at % shape[0] == 0:
            epoch = setup.on_mesh(np.int32(at // shape[0]))
            order = epoch_order(key, epoch, count, config.batch_size)
        yield split, order


def _score(setup, record) -> float:
    return metrics.target_top1(record["test"], setup.kept, setup.num_params)


def renewal(setup, prediction_step):
    """State → state with a new memory of the method, or None if it keeps none."""
    split, method, config = setup.held_out_split, setup.method, setup.config.method
    if split is None:
        return None
    size = evaluation_batch_size(setup.config, setup.group)
    count = len(split.labels)

    @partial(jax.jit, out_shardings=setup.everywhere)
    def memory(logits, labels):
        return method.memory.renew(config, jnp.concatenate(logits, axis=1)[:, :count], labels)

    def renew(state):
        logits = [
            prediction_step(state.stacks, split, setup.on_mesh(np.int32(index)))
            for index in range(-(-count // size))
        ]
        return state.replace(method=state.method.replace(memory=memory(logits, split.labels)))

    return renew


def _save_kept(setup, workdir, state):
    """Writes the networks that the training was for, each as a plain one, to `networks/PEER`."""
    for peer in setup.kept:
        description = {
            "network": setup.group.names[peer],
            "num_classes": setup.dataset.num_classes,
            "class_names": setup.dataset.class_names,
            **setup.images.to_json(),
        }
        take = partial(peers.plain_variables, setup.group.stacks, peer=peer)
        variables = jax.jit(take, out_shardings=setup.everywhere)(state.stacks)
        saved.save(workdir / "networks" / str(peer), variables, description)


def _training(state: State) -> dict:
    sums, promotions = jax.device_get((state.sums, state.promotions))
    return metrics.training(sums, promotions)


def _introduce(setup, workdir, step, shown):
    devices = setup.group.mesh.devices
    names = ", ".join(setup.group.names)
    shown.say(
        f"{setup.config.method.name}: {names} on {setup.config.data.name} "
        f"({len(setup.train_split.labels):,} training, {len(setup.test_split.labels):,} test "
        f"images); {devices.shape[0]} × {devices.shape[1]} {devices.flat[0].platform} devices "
        f"(data × peer); files in {workdir}"
    )
    if step == setup.config.epochs * setup.steps_per_epoch:
        shown.say("this run is finished")
    else:
        shown.say(f"resumed at step {step}" if step else "compiling the step …")


def _check_finite(setup, state, checkpoints):
    """Stops a run whose outputs or weights are not finite; nothing after that is saved."""
    members = tuple(stack.peers for stack in setup.group.stacks)
    failed_at = jax.device_get(failures(members, setup.everywhere, state))
    if (failed_at < 0).all():
        return
    step = failed_at[failed_at >= 0].min()
    who = [f"{i} ({setup.group.names[i]})" for i in np.flatnonzero(failed_at == step)]
    last = checkpoints.step("last")
    kept = "no checkpoint yet" if last is None else f"the checkpoint of step {last} is kept"
    raise UserError(
        f"the loss of peer {', '.join(who)} is not finite from step {step} on: stopped; {kept}. "
        "A lower learning rate or a warm-up often helps."
    )
