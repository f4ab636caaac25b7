"""The loop: data, state, steps, evaluation, checkpoints, metrics."""

import fcntl
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import config as configs
from orc_jax import data as datasets
from orc_jax import display, methods, metrics, peers
from orc_jax.checkpoint import Checkpoints, pretrained, read_config
from orc_jax.data import batches
from orc_jax.errors import UserError
from orc_jax.step import (
    State,
    abstract_state,
    compile_steps,
    evaluation_zeros,
    init_state,
    streams,
)


class Setup(NamedTuple):
    """What a config builds, before any weights."""

    config: Any
    dataset: datasets.Dataset
    method: Any
    group: peers.Group
    train_split: batches.OnDevice
    test_split: batches.OnDevice
    steps_per_epoch: int
    num_params: list[int]

    def on_mesh(self, tree):
        """A copy of host arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.group.mesh, PartitionSpec()))

    def state_args(self):
        """The arguments that `init_state` and `abstract_state` share."""
        shape, classes = self.dataset.image_shape, self.dataset.num_classes
        return self.config, self.group, self.method, shape, classes


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


def prepare(config, data: tuple | None = None) -> Setup:
    """Checks a config, loads its data and builds its group.

    Args:
      config: the whole config.
      data: (train images, train labels, test images, test labels) in place of the data
        set that the config names; see `data.from_arrays`.

    Raises:
      UserError: something in it is wrong.
    """
    shape = configs.check(config, len(jax.devices()), own_data=data is not None)
    dataset = datasets.from_arrays(data[:2], data[2:]) if data else datasets.load(config)
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"batch_size is {config.batch_size}, allowed: at most the "
            f"{len(dataset.train.labels)} training images"
        )
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("data", "peer"))
    method = methods.get(config.method.name)
    apart = method.apart(config.method, len(config.peers))
    group = peers.build(config, dataset.num_classes, steps_per_epoch, mesh, apart)
    num_params = [0] * group.size
    for stack in group.stacks:
        params = peers.abstract_variables(stack, dataset.image_shape)["params"]
        for peer in stack.peers:
            num_params[peer] = sum(leaf.size for leaf in jax.tree.leaves(params))
    setup = Setup(config, dataset, method, group, (), (), steps_per_epoch, num_params)
    train_split, test_split = setup.on_mesh(batches.normalised(dataset))
    return setup._replace(train_split=train_split, test_split=test_split)


def train(config, workdir: str | Path, data: tuple | None = None) -> Result:
    """Trains the group that a config describes, or goes on where it was stopped.

    Args:
      config: the whole config, e.g. from `configs/digits.py` or `orc_jax.config.default`.
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
    workdir = Path(workdir)
    if data is not None:
        config = config.copy_and_resolve_references()
        config.data.name = "arrays"
    setup = prepare(config, data)
    weights = pretrained(setup.group, config, setup.dataset.image_shape)
    with _Lock(workdir), Interruption() as interruption:
        _claim(workdir, config)
        checkpoints = Checkpoints(workdir)
        try:
            return _train(setup, workdir, weights, checkpoints, interruption)
        finally:
            checkpoints.close()


def _train(setup, workdir, weights, checkpoints, interruption) -> Result:
    config, per_epoch = setup.config, setup.steps_per_epoch
    train_step, evaluation_step = compile_steps(config, setup.group, setup.method)
    epoch_order = jax.jit(
        batches.epoch_order,
        static_argnums=(2, 3),
        out_shardings=NamedSharding(setup.group.mesh, PartitionSpec()),
    )
    order_key = streams(config.seed)[1]

    last = checkpoints.step("last")
    if last is None:
        state = init_state(*setup.state_args(), weights)
        step = 0
    else:
        state = checkpoints.restore(last, abstract_state(*setup.state_args()))
        step = last
    records = [record for record in metrics.read(workdir) if record["step"] <= step]
    record = records[-1] if records else {}
    writers = metrics.Writers(workdir, setup.group.names, step)
    shown = display.Display(setup.group.names, config.epochs, per_epoch, config.batch_size)
    with shown:
        _introduce(setup, workdir, step, shown)
        shown.begin(step)
        for epoch in range(step // per_epoch, config.epochs):
            order = epoch_order(
                order_key, epoch, len(setup.dataset.train.labels), config.batch_size
            )
            began, first = time.monotonic(), step
            while step < (epoch + 1) * per_epoch and not interruption.requested:
                with jax.transfer_guard("disallow"):
                    state = train_step(state, setup.train_split, order)
                step += 1
                if shown.due():
                    _check_finite(setup, state, checkpoints)
                    shown.update(step, _training(state))
            _check_finite(setup, state, checkpoints)
            if step < (epoch + 1) * per_epoch:
                checkpoints.save(state, None)
                checkpoints.wait()
                shown.say(
                    f"stopped by {interruption.requested} at step {step}: checkpoint saved, "
                    "the same command goes on from here"
                )
                return Result(state, record, finished=False)

            seconds = time.monotonic() - began
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
                score = metrics.target_top1(record["test"], setup.num_params)
            writers.write(record)
            shown.epoch(record)
            if (epoch + 1) % config.checkpoint_every == 0 or is_last:
                checkpoints.save(state, score)
    writers.close()
    checkpoints.wait()
    title = f"{config.method.name} after {config.epochs} epochs"
    show_table(setup, title, record["test"], record["train"]["promotions_total"], step)
    return Result(state, record, finished=True)


def evaluate_split(setup: Setup, evaluation_step, stacks) -> dict:
    """Test metrics of every peer and of the ensemble, each image counted once."""
    split = setup.test_split
    sums = setup.on_mesh(jax.device_get(evaluation_zeros(setup.group.size)))
    for index in range(-(-len(setup.dataset.test.labels) // setup.config.eval_batch_size)):
        sums = evaluation_step(stacks, split, setup.on_mesh(np.int32(index)), sums)
    return metrics.evaluation(jax.device_get(sums))


def show_table(setup: Setup, title: str, test: dict, promotions: list[int], step: int) -> None:
    """Prints the table of peers.

    Args:
      setup, title: of the run.
      test: `metrics.evaluation`.
      promotions: [P] steps in which each peer was promoted, of `step` steps.
      step: steps done.
    """
    roles = setup.method.describe(setup.config.method, setup.group.size)
    shares = [count / max(step, 1) for count in promotions]
    display.show_peers(title, setup.group.names, roles, setup.num_params, shares, test)


def _training(state: State) -> dict:
    sums, promotions = jax.device_get((state.sums, state.promotions))
    return metrics.training(sums, promotions)


def _introduce(setup, workdir, step, shown):
    devices = setup.group.mesh.devices
    names = ", ".join(setup.group.names)
    shown.say(
        f"{setup.config.method.name}: {names} on {setup.config.data.name} "
        f"({len(setup.dataset.train.labels):,} training, {len(setup.dataset.test.labels):,} test "
        f"images); {devices.shape[0]} × {devices.shape[1]} {devices.flat[0].platform} devices "
        f"(data × peer); files in {workdir}"
    )
    shown.say(f"resumed at step {step}" if step else "compiling the step …")


def _check_finite(setup, state, checkpoints):
    """Stops a run whose outputs are no longer finite; nothing after that is saved."""
    failed_at = jax.device_get(state.failed_at)
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


def _claim(workdir: Path, config) -> None:
    """Makes a work directory this config's, or checks that it is."""
    if (workdir / "config.json").exists():
        found = configs.differences(read_config(workdir), config)
        if found:
            raise UserError(
                f"{workdir} belongs to a run with another config ({'; '.join(found)}): "
                "choose another --workdir, or give the same settings to go on with it"
            )
        return
    others = [path.name for path in workdir.iterdir() if path.name != _Lock.NAME]
    if others:
        raise UserError(f"{workdir} is not empty and not a work directory: {others[0]} is in it")
    temporary = workdir / "config.json.new"
    temporary.write_text(configs.to_json(config))
    temporary.replace(workdir / "config.json")


class _Lock:
    """Keeps a second process out of a work directory, until this one ends."""

    NAME = ".lock"

    def __init__(self, workdir: Path):
        self._workdir = workdir

    def __enter__(self):
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = (self._workdir / self.NAME).open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self._workdir}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training in {self._workdir}") from error

    def __exit__(self, *_):
        self._file.close()


class Interruption:
    """Notes the first SIGTERM or Ctrl-C; a second one acts as it always did."""

    def __init__(self):
        self.requested = ""
        self._before = {}

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere the signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.requested = signal.Signals(number).name
        self.__exit__()

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
