"""The loop over epochs and steps, with evaluation, checkpoints and metrics."""

import collections
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import peers
from orc_jax.data import batches, stream
from orc_jax.errors import UserError, counted
from orc_jax.evaluation import evaluate_split, renewal, show_table
from orc_jax.introduction import introduce
from orc_jax.prepare import Setup
from orc_jax.runtime import display, files, metrics, processes
from orc_jax.runtime.devices import explained
from orc_jax.runtime.metrics import chosen_by
from orc_jax.runtime.profile import Profiler
from orc_jax.runtime.signals import Stopped
from orc_jax.state import State, failures, init_state, streams
from orc_jax.trained import saved


class Result(NamedTuple):
    """What `train` returns.

    Attributes:
      state: the state after the last step.
      metrics: record of the last finished epoch (see `runtime/metrics.py`); empty if there is none.
      stopped_by: "SIGTERM" or "SIGINT" (Ctrl-C), if it ended the run before its last epoch.
    """

    state: State
    metrics: dict
    stopped_by: str = ""

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return not self.stopped_by


class NotFinite(UserError):
    """The error of a run whose outputs or weights are not finite: to go on would repeat it."""


class Loop:
    """The training of a run, from its last checkpoint on.

    Attributes:
      state: the current state.
      step: number of steps done.
      record: record of the last finished epoch; empty if there is none.
      best: highest score of a checkpoint (see `metrics.target_top1`); -1 if there is none.
      is_unrecorded: whether the run ended between an epoch's last step and the end of its
        evaluation, or the record of that epoch is lost.
      called: time at which `train` was called; None once the first step is done.
      clock: (time, step) from which the speed of the epoch counts: without the first step, which
        is compiled.
      saved_at: time of the last checkpoint.
      in_flight: an output of each step that the devices may not have finished.
    """

    def __init__(
        self, setup: Setup, steps, template, workdir, weights, checkpoints, interruption, called
    ):
        config, group = setup.config, setup.group
        self.setup, self.workdir = setup, workdir
        self.checkpoints, self.interruption = checkpoints, interruption
        self.train_step, self.evaluation_step, prediction_step = steps
        self.renew = renewal(setup, prediction_step)

        # What the main process reads decides: another may see older files.
        self.step = processes.number_from_main(checkpoints.step("last") or 0)
        if self.step:
            self.state = checkpoints.restore(self.step, template)
        else:
            self.state = init_state(*setup.state_args(), weights, template.sums)
        records = [record for record in metrics.read(workdir) if record["step"] <= self.step]
        self.record: dict = records[-1] if records else {}
        self.best = -1.0 if checkpoints.best_score is None else checkpoints.best_score
        at_end = self.step > 0 and self.step % setup.steps_per_epoch == 0
        self.is_unrecorded = processes.broadcast_from_main(
            at_end and self.record.get("step") != self.step
        )
        missing = self.step // setup.steps_per_epoch - len(records) - self.is_unrecorded
        if missing > 0:
            shown = counted(missing, "epoch")
            display.say(f"warning: {workdir / 'metrics.jsonl'} has lost the records of {shown}")

        self.called = called
        self.clock = called, self.step
        self.saved_at = time.monotonic()
        self.in_flight: collections.deque[jax.Array] = collections.deque()
        self.shown = display.Display(
            group.names, config.epochs, setup.steps_per_epoch, config.batch_size
        )
        self.profiler = Profiler(config.profile and processes.is_main(), workdir)

    def run(self) -> Result:
        """Train to the end of the last epoch, or until a signal asks to stop."""
        setup, shown = self.setup, self.shown
        writers = metrics.Writers(self.workdir, setup.group.names, self.step)
        with self._errors_say_what_is_safe():
            with writers, self.profiler, shown:
                introduce(setup, self.workdir, self.step, self.is_unrecorded, shown)
                shown.begin(self.step)
                try:
                    self._train(writers)
                except Stopped:
                    return self._stop()
            return self._finish()

    @contextmanager
    def _errors_say_what_is_safe(self) -> Iterator[None]:
        """Add to errors from where the run can go on."""
        try:
            with files.unprintable():
                yield
        except (UserError, jax.errors.JaxRuntimeError) as error:
            if not (text := str(error) if isinstance(error, UserError) else explained(error)):
                raise
            last = self.checkpoints.step("last")
            if last is None:
                safe = "there is no checkpoint yet"
            elif isinstance(error, NotFinite):
                safe = f"the checkpoint of step {last} is kept"
            else:
                safe = f"the same command goes on from the checkpoint of step {last}"
            first, *rest = text.splitlines()
            kind = type(error) if isinstance(error, UserError) else UserError
            raise kind("\n".join([f"{first.rstrip('.')}; {safe}", *rest])) from error

    def _train(self, writers) -> None:
        """Train the epochs that are left, with their evaluations.

        Args:
          writers: of the metrics.

        Raises:
          Stopped: a signal asks to stop.
          UserError: the loss is no longer finite, or an image or file cannot be read or written.
        """
        setup, per_epoch = self.setup, self.setup.steps_per_epoch
        if self.is_unrecorded:
            self._end_epoch(self.step // per_epoch, writers)
        following = training_batches(setup, self.step)
        for epoch in range(self.step // per_epoch, setup.config.epochs):
            if self.renew and self.step == epoch * per_epoch:
                self.state = self.renew(self.state)
            self.clock = time.monotonic(), self.step
            if isinstance(setup.train_split, stream.OnDisk):
                setup.train_split.passed_over.clear()
            self._train_epoch(following, (epoch + 1) * per_epoch)
            self._end_epoch(epoch + 1, writers)

    def _train_epoch(self, following, last: int) -> None:
        """Train up to the step `last`.

        Args:
          following: iterator of `training_batches`.
          last: number of steps done at the end of the epoch.

        Raises:
          Stopped: a signal asks to stop.
          UserError: an image cannot be read; what was learned so far is saved.
        """
        while self.step < last:
            self.interruption.check()
            try:
                split, order = next(following)
            except UserError as error:
                if jax.process_count() > 1 or not self.step:
                    raise  # the other processes may have read their images
                self._save()
                self.checkpoints.wait()
                raise error
            self.profiler.before_step(self.state)
            with jax.transfer_guard("disallow"):
                self.state = self.train_step(self.state, split, order)
                self.in_flight.append(jnp.copy(self.state.step))
            self.step += 1
            if self.called:
                self.in_flight[0].block_until_ready()
                self.shown.say(f"first step after {time.monotonic() - self.called:.1f} s")
                self.called = None
                if self.step < last:
                    self.clock = time.monotonic(), self.step
            # Two steps in flight keep the devices busy; with more, a signal would wait for them.
            if len(self.in_flight) > 2:
                self.in_flight.popleft().block_until_ready()
            if self._is_due():
                self._save()
            if self.shown.due():
                # The check is a computation of all processes, but their clocks differ.
                if jax.process_count() == 1:
                    _check_finite(self.setup, self.state)
                self.shown.update(self.step, _training(self.state))

    def _is_due(self) -> bool:
        """Return whether it is time for a checkpoint within an epoch, in all processes."""
        seconds = 60 * self.setup.config.checkpoint_minutes
        # To ask the main process, whose clock decides, is to wait for it.
        if not seconds or (jax.process_count() > 1 and self.step % 100):
            return False
        return processes.broadcast_from_main(time.monotonic() - self.saved_at >= seconds)

    def _save(self) -> None:
        """Start to write a checkpoint of this step, unless there is one."""
        _check_finite(self.setup, self.state)
        self.checkpoints.save(self.step, self.state)
        self.saved_at = time.monotonic()

    def _stop(self) -> Result:
        """Save a checkpoint, in the middle of an epoch or of its evaluation."""
        self._save()
        self.checkpoints.wait()
        self.shown.say(
            f"stopped by {self.interruption.requested} at step {self.step}: checkpoint saved, "
            "the same command goes on from here"
        )
        return Result(self.state, self.record, self.interruption.requested)

    def _end_epoch(self, epoch: int, writers) -> None:
        """Save a checkpoint and evaluate the networks, if they are due; write the epoch's record.

        The checkpoint comes first: nothing is lost if the run ends during the evaluation.

        Args:
          epoch: number of epochs done.
          writers: of the metrics.

        Raises:
          Stopped: a signal asks to stop.
        """
        setup, config = self.setup, self.setup.config
        seconds, steps = time.monotonic() - self.clock[0], self.step - self.clock[1]
        record = {
            "epoch": epoch,
            "step": self.step,
            "seconds": round(seconds, 3),
            "images_per_second": round(steps * config.batch_size / seconds, 1),
            "train": _training(self.state),
        }
        if isinstance(setup.train_split, stream.OnDisk):
            own = setup.train_split.passed_over["training"]
            record["passed_over"] = processes.total(own)
        is_last = epoch == config.epochs
        is_due = epoch % config.checkpoint_every == 0 or is_last
        if is_due:
            self._save()
        else:
            _check_finite(setup, self.state)
        if epoch % config.eval_every == 0 or is_last:
            if setup.val_split is not None:
                record["val"] = self._evaluated(setup.val_split)
            if setup.val_split is None or is_last:
                record["test"] = self._evaluated(setup.test_split)
            score = _score(setup, record)
            is_best = processes.broadcast_from_main(score > self.best)
            if math.isfinite(score) and (is_due or is_best):
                self._save()
                self.checkpoints.rate(self.step, score)
                self.best = max(self.best, score)
        writers.write(record)
        self.record = record
        self.shown.epoch(record)

    def _finish(self) -> Result:
        """Save the networks that are kept, and print the table of peers."""
        setup, config = self.setup, self.setup.config
        self.checkpoints.wait()
        _save_kept(setup, self.workdir, self.state)
        title = f"{config.method.name} after epoch {config.epochs}"
        show_table(setup, title, self.record["test"], self.state.promotions.tolist(), self.step)
        self.shown.say(
            f"the best checkpoint is that of step {self.checkpoints.step('best')}, chosen by "
            + (
                "test images (--config.data.val_share=0.1 holds out training images for it)"
                if setup.val_split is None
                else counted(len(setup.val_split.labels), "validation image")
            )
        )
        return Result(self.state, self.record)

    def _evaluated(self, split) -> dict:
        check = self.interruption.check
        return evaluate_split(self.setup, self.evaluation_step, self.state, split, check)


def training_batches(setup: Setup, step: int) -> Iterator[tuple]:
    """Yield the arguments (split, order) of the train step, from a step on to the last one.

    The split is all images on the devices, and the order [steps, B] is that of the epoch; or, for
    images that are streamed, the split is one batch at a time, in the order in which it was read.

    Args:
      setup: of the run.
      step: number of steps done.
    """
    config, split, per_epoch = setup.config, setup.train_split, setup.steps_per_epoch
    assert split is not None  # None only in a setup for evaluation
    if isinstance(split, stream.OnDisk):
        slots = np.arange(config.batch_size, dtype=np.int32)
        order = setup.on_mesh(np.broadcast_to(slots, (per_epoch, config.batch_size)))
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
    for current in range(step, config.epochs * per_epoch):
        if current == step or current % per_epoch == 0:
            epoch = setup.on_mesh(np.int32(current // per_epoch))
            order = epoch_order(key, epoch, count, config.batch_size)
        yield split, order


def _score(setup, record) -> float:
    """Return the accuracy in percent by which checkpoints are compared."""
    return metrics.target_top1(chosen_by(record), setup.kept, setup.num_params)


def _save_kept(setup, workdir, state):
    """Save the peers that the training was for as plain networks, in `networks/PEER`."""
    take = jax.jit(peers.plain_member, out_shardings=setup.everywhere)
    for stack, stack_state in zip(setup.group.stacks, state.stacks, strict=True):
        for slot, peer in enumerate(stack.peers):
            if peer not in setup.kept:
                continue
            description = {
                "network": stack.name,
                "num_classes": setup.dataset.num_classes,
                "class_names": setup.dataset.class_names,
                **setup.own_images.get(peer, setup.images).to_json(),
            }
            saved.save(workdir / "networks" / str(peer), take(stack_state, slot), description)


def _training(state: State) -> dict:
    """Return the metrics of the current epoch's train steps, see `metrics.training`."""
    sums, promotions = jax.device_get((state.sums, state.promotions))
    return metrics.training(sums, promotions)


def _check_finite(setup, state):
    """Check that the outputs and weights of all peers have been finite so far.

    It is called before every checkpoint, so that none is saved with other weights.

    Raises:
      NotFinite: they have not.
    """
    members = tuple(stack.peers for stack in setup.group.stacks)
    failed_at = jax.device_get(failures(members, setup.everywhere, state))
    if (failed_at < 0).all():
        return
    step = failed_at[failed_at >= 0].min()
    failed = [f"{i} ({setup.group.names[i]})" for i in np.flatnonzero(failed_at == step)]
    raise NotFinite(
        f"the loss of peer {', '.join(failed)} is not finite from step {step} on: stopped (a lower "
        "learning rate or a warm-up often helps, in another --workdir)"
    )
