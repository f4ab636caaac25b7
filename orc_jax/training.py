"""Training: what leads to the loop, with the teachers that are trained first."""

import json
import time
from pathlib import Path
from typing import Any

import jax

from orc_jax import checks, methods, optimizers, peers, pretraining
from orc_jax import config as configs
from orc_jax.loop import Loop, Result
from orc_jax.prepare import Setup, prepare
from orc_jax.runtime import display, processes
from orc_jax.runtime.checkpoint_notes import has_checkpoint, set_damaged_aside
from orc_jax.runtime.checkpoints import Checkpoints, read_config
from orc_jax.runtime.signals import Interruption
from orc_jax.runtime.versions import versions
from orc_jax.runtime.workdir import (
    Lock,
    began,
    check,
    check_config,
    check_saveable,
    create,
    fingerprint,
    has_begun,
    set_epochs,
)
from orc_jax.state import State, abstract_state
from orc_jax.step import compile_steps
from orc_jax.trained import saved


def train(config, workdir: str | Path, data: tuple | None = None, extend: bool = False) -> Result:
    """Train the group that a config describes, or resume its training.

    Args:
      config: the whole config, e.g. of `configs/digits.py` or `orc_jax.default_config`.
      workdir: work directory for config, metrics, roles and checkpoints. Teachers that are trained
        first have theirs in `teachers/`. The same call resumes a run that was stopped.
      data: arrays to train on in place of a named data set, (train images, train labels, test
        images, test labels): uint8 [N, H, W] or [N, H, W, channels], and integers [N].
      extend: whether a run may get more epochs than before although its learning rate depends on
        their number (schedule "cosine"): the rate jumps to where the longer cosine has it.

    Returns:
      The final state and metrics.

    Raises:
      UserError: the config, the data or a checkpoint is wrong, the work directory belongs to
        another run, processes differ in their settings, an image or file cannot be read or written,
        or the loss is no longer finite.
    """
    workdir = Path(workdir).expanduser()
    if data is not None:
        config = config.copy_and_resolve_references()
        config.data.name = "arrays"
    checks.check(config, len(jax.devices()), own_data=data is not None)
    config = configs.resolved(config)
    check_saveable(workdir, "the work directory")
    processes.agree(_facts(config, workdir))
    is_run = all((workdir / name).exists() for name in ("config.json", "run.json"))
    if processes.broadcast_from_main(is_run):  # another process may see older files
        if has_begun(workdir):
            check_config(workdir, config, extend)
        _set_damaged_aside(workdir)
    teachers = [] if has_checkpoint(workdir) else pretraining.teachers(config, workdir)
    sources = {i: peer.init_from for i, peer in enumerate(config.peers) if peer.init_from}
    sources |= {teacher.peer: str(teacher.network) for teacher in teachers}
    _warn_of_twins(config, sources)
    missing = [teacher for teacher in teachers if not teacher.is_trained]
    if missing:
        # What is wrong with this run is found before its teachers are trained.
        trained = {peer: sources[peer] for peer in sources.keys() - {t.peer for t in missing}}
        _begin(config, workdir, data, trained, extend)
    for teacher in missing:
        display.say(f"training peer {teacher.peer}, {teacher.config.peers[-1].model}, first")
        with Lock(workdir):
            result = train(teacher.config, teacher.workdir, data, extend)
        if not result.finished:
            return result
    return _train_group(config, workdir, data, sources, extend)


def _facts(config, workdir: Path) -> dict[str, Any]:
    """Return what must be the same in all processes before any data is loaded."""
    settings = configs.flat(json.loads(config.to_json()))
    facts = {f"config.{key}": settings[key] for key in settings.keys() - {*configs.OF_A_MACHINE}}
    own = {name: version for name, version in versions().items() if name != "python"}
    facts |= {f"the version of {name}": version for name, version in own.items()}
    return facts | {"the work directory": str(workdir.absolute())}


def _set_damaged_aside(workdir: Path) -> None:
    """Move damaged checkpoints away, so that the run goes on from the last whole one."""
    read_config(workdir)  # raises if the directory is another program's
    if processes.is_main() and (workdir / "checkpoints").exists():
        with Lock(workdir):
            lines = set_damaged_aside(workdir)
        for line in lines:
            display.say(f"warning: {line}")
        if lines and not has_checkpoint(workdir):
            display.say("warning: there is no whole checkpoint: the run begins again")
    processes.barrier("damaged checkpoints are set aside")


def _warn_of_twins(config, sources: dict[int, str]) -> None:
    """Say so if two whole networks that learn start from the same weights."""
    method = methods.get(config.method.name)
    kinds = method.positions.kinds(config.method, len(config.peers))
    learning = [i for i in sources if kinds[i] in peers.CHANGING]
    same = [i for i in learning if list(sources.values()).count(sources[i]) > 1]
    if len(same) > 1 and not method.needs.shared_trunk(config.method):
        display.say(
            f"warning: peers {', '.join(map(str, same))} start from the same network: what they "
            "see and learn alike keeps them alike"
        )


def _begin(
    config, workdir: Path, data, sources: dict[int, str], extend: bool
) -> tuple[Setup, State, dict]:
    """Check a run against its data and its work directory, and make the directory its own.

    Args:
      config, workdir, data, extend: see `train`.
      sources: peer → the trained network that it starts from.

    Returns:
      The setup, the shapes of the state, and peer → variables to start from, as far as the run has
      no checkpoint.
    """
    # A run streams to its end what it streamed at first, even if the memory has another size now.
    # Likewise for how it scales 16-bit images.
    is_run = (workdir / "config.json").exists() and has_begun(workdir)
    setup = prepare(config, data, began(workdir) if is_run else None, reports=workdir)
    assert setup.train_split is not None  # None only in a setup for evaluation
    count = len(setup.train_split.labels)
    prints = fingerprint(setup.dataset)
    processes.agree({f"the checksum of the data's {part}": prints[part] for part in prints})
    check(workdir, setup.config, setup.dataset, extend)
    # Traces the method, so that a fault of it is found before the work directory is made.
    template = abstract_state(*setup.state_args())
    weights: dict = {}
    if has_checkpoint(workdir):
        own_images = began(workdir).own_images
    else:
        names = tuple(setup.dataset.class_names)
        new_heads = [i for i, peer in enumerate(setup.config.peers) if peer.new_head]
        weights, own_images = saved.pretrained(setup.group, sources, setup.images, names, new_heads)
    setup = setup.with_own_images(own_images)
    processes.barrier("the work directory is checked")
    with Lock(workdir):
        create(workdir, setup.config, setup.dataset, setup.images, own_images, count)
        processes.barrier("the work directory is this run's")
    return setup, template, weights


def _train_group(config, workdir: Path, data, sources: dict[int, str], extend: bool) -> Result:
    """Train a group whose teachers are trained; see `_begin`."""
    called = time.monotonic()
    setup, template, weights = _begin(config, workdir, data, sources, extend)
    steps = compile_steps(setup.config, setup.group, setup.method, streamed=setup.streamed)
    with (
        Lock(workdir),
        Interruption() as interruption,
        Checkpoints(workdir, read_only=False) as checkpoints,
    ):
        # Another run may have made the directory its own before this one could lock it.
        _accept_changes(setup, workdir, check_config(workdir, setup.config, extend))
        loop = Loop(setup, steps, template, workdir, weights, checkpoints, interruption, called)
        return loop.run()


def _accept_changes(setup: Setup, workdir: Path, changes: list[str]) -> None:
    """Say which settings of a run have changed, and give it more epochs if it is to have them."""
    if not changes:
        return
    display.say(f"changed since the run began: {'; '.join(changes)}")
    before = read_config(workdir).epochs
    if setup.config.epochs == before:
        return
    end = before * setup.steps_per_epoch
    for stack in peers.layout(setup.config, setup.method):
        old, new = (
            optimizers.schedule(stack.optimizer, epochs, setup.steps_per_epoch)
            for epochs in (before, setup.config.epochs)
        )
        if stack.changes and stack.optimizer.schedule == "cosine":
            display.say(
                f"the learning rate of peers {', '.join(map(str, stack.peers))} was to fall from "
                f"{old(0):.3g} to {old(end):.3g} by epoch {before}; there it is {new(end):.3g} "
                "now, and falls until the new last epoch"
            )
    set_epochs(workdir, setup.config.epochs)
