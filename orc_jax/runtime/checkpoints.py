"""Checkpoints of a run, in `checkpoints/STEP` of its work directory.

Orbax writes them atomically and in the background; the last two and the best one are kept. Beside
what Orbax wrote, `notes.json` of a checkpoint holds its score and the checksums of its files.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from orc_jax import config as configs
from orc_jax.errors import UserError
from orc_jax.runtime import checkpoint_notes, files
from orc_jax.runtime.checkpoint_notes import fault, steps
from orc_jax.runtime.processes import is_main
from orc_jax.state import State


class Checkpoints:
    """The checkpoints of one work directory.

    A context manager, whose exit waits until all checkpoints are on disk.
    """

    def __init__(self, workdir: str | Path, read_only: bool = True):
        """Open the checkpoints.

        Args:
          workdir: work directory of the run.
          read_only: whether to leave the directory as it is, and only restore.
        """
        self._directory = Path(workdir).absolute() / "checkpoints"
        self._pending: int | None = None  # step whose checkpoint has no notes yet

        # Orbax warns about every directory that is opened with `read_only`.
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.ERROR)
        self._best = checkpoint_notes.best(self._directory)
        kept = [policies.LatestN(2), _Kept(lambda step: self._best and step == self._best[1])]
        self._manager = _Manager(
            self._directory,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                preservation_policy=policies.AnyPreservationPolicy(kept),
            ),
        )
        logger.setLevel(level)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and issubclass(kind, jax.errors.JaxRuntimeError):
            return  # to wait would be to wait for a process that has died
        with suppress(UserError) if kind else nullcontext():  # the first error is the cause
            self.wait()
        self._manager.close()

    def save(self, step: int, state: State) -> None:
        """Start to write the state of a step, unless it has a checkpoint.

        Args:
          step: steps done.
          state: what to write.

        Raises:
          UserError: it cannot be written, or the one before it could not.
        """
        self.wait()
        if step not in self._manager.all_steps():
            args = ocp.args.Composite(state=ocp.args.StandardSave(state))
            with files.unwritable(self._directory / str(step)):
                self._manager.save(step, args=args)
            self._pending = step

    def rate(self, step: int, score: float) -> None:
        """Note the score of a checkpoint, by which the best one is chosen.

        Args:
          step: of a checkpoint.
          score: top-1 accuracy in percent, see `metrics.target_top1`.

        Raises:
          UserError: it cannot be written.
        """
        self._best = max(self._best or (score, step), (score, step))
        self._pending = step
        self.wait(score)

    def step(self, which: str = "last") -> int | None:
        """Return the step of a checkpoint, or None if there is no checkpoint at all.

        Args:
          which: "last", "best" or the step itself.

        Raises:
          UserError: there are checkpoints, but not this one.
        """
        there = steps(self._directory.parent)
        if not there:
            return None
        if which == "last":
            return there[-1]
        if which == "best":
            return self._best[1] if self._best else there[-1]
        if which not in map(str, there):
            raise UserError(
                f"no checkpoint {which!r}, there are: last, best, {', '.join(map(str, there))}"
            )
        return int(which)

    @property
    def best_score(self) -> float | None:
        """Score of the best checkpoint, or None if none was evaluated."""
        return self._best[0] if self._best else None

    def restore(self, step: int, like: State) -> State:
        """Restore the state of a step.

        Args:
          step: of a checkpoint.
          like: state with the expected shapes and shardings; its values are not used.

        Raises:
          UserError: the checkpoint is damaged, or of another config.
        """
        return self._restore(step, like)

    def restore_arrays(self, step: int) -> dict:
        """Restore the state of a step as nested dicts of NumPy arrays, whatever its networks.

        Raises:
          UserError: the checkpoint is damaged.
        """
        self._check(step)
        tree = self._manager.item_metadata(step).state
        if tree is None:
            raise UserError(f"{self._directory / str(step)} is damaged: it has no metadata")
        return self._restore(step, jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree.tree))

    def _check(self, step):
        """Check that a checkpoint is as it was written."""
        if found := fault(checkpoint := self._directory / str(step)):
            others = [other for other in steps(self._directory.parent) if other != step]
            whole = [str(s) for s in others if not fault(self._directory / str(s))]
            remedy = f"; there is one of step {', '.join(whole)}" if whole else ""
            raise UserError(f"{checkpoint} is damaged: {found}{remedy}")

    def _restore(self, step, like) -> Any:
        self._check(step)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        try:
            return self._manager.restore(step, args=args).state
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self._directory / str(step)} cannot be restored: {error}") from error

    def wait(self, score: float | None = None) -> None:
        """Wait until all checkpoints are on disk, and note the checksums of their files.

        Args:
          score: of the last one; None if it was not evaluated.

        Raises:
          UserError: the last one cannot be written.
        """
        step, self._pending = self._pending, None
        with files.unwritable(self._directory / str(step)):
            self._manager.wait_until_finished()
        if step is not None and is_main():
            checkpoint_notes.write(self._directory / str(step), score)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask JAX whether a process was sent SIGTERM.

    JAX counts how often it is asked. The answer is for the loop, see `processes.are_stopped`; at
    other counts it would be lost.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Kept(policies.PreservationPolicy):
    """Keeps checkpoints of some steps.

    Attributes:
      is_kept: step → whether it is kept.
    """

    def __init__(self, is_kept: Callable[[int], object]):
        self._is_kept = is_kept

    def should_preserve(self, checkpoints, *, context):
        return [bool(self._is_kept(checkpoint.step)) for checkpoint in checkpoints]


def read_config(workdir: str | Path) -> ConfigDict:
    """Read the config of a work directory.

    Raises:
      UserError: the directory is not a work directory, or its config is damaged or unreadable.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a work directory: it has no config.json")
    try:
        return configs.from_json(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a config: {error}") from error
