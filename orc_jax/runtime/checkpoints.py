"""Checkpoints of a run, in `checkpoints/STEP` of its work directory.

Orbax writes them atomically and in the background; the last one and the best one are kept.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from orc_jax import config as configs
from orc_jax.errors import UserError
from orc_jax.state import State

# The score by which the best checkpoint is chosen, see `metrics.target_top1`.
SCORE = "target_top1"


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
        self._workdir = workdir

        def score(metrics):
            return metrics[SCORE]

        # Orbax warns about every directory that is opened with `read_only`.
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.ERROR)
        best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                best_fn=score,
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            ),
        )
        logger.setLevel(level)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and issubclass(kind, jax.errors.JaxRuntimeError):
            return  # to wait would be to wait for a process that has died
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: State, score: float | None) -> None:
        """Start to write the state of a step, unless it has a checkpoint.

        Args:
          step: steps done.
          state: what to write.
          score: top-1 accuracy, see `metrics.target_top1`; None if it was not evaluated.
        """
        if step not in self._manager.all_steps():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=None if score is None else {SCORE: score},
            )

    def step(self, which: str = "last") -> int | None:
        """Return the step of a checkpoint, or None if there is no checkpoint at all.

        Args:
          which: "last", "best" or the step itself.

        Raises:
          UserError: there are checkpoints, but not this one.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            return None
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if not which.isdigit() or int(which) not in steps:
            raise UserError(f"no checkpoint {which!r}, there are: last, best, {steps}")
        return int(which)

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
        tree = self._manager.item_metadata(step).state
        if tree is None:
            raise UserError(f"the checkpoint of step {step} in {self._workdir} is damaged")
        return self._restore(step, jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree.tree))

    def _restore(self, step, like) -> Any:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        try:
            return self._manager.restore(step, args=args).state
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint of step {step} in {self._workdir} cannot be restored: {error}"
            ) from error

    def wait(self) -> None:
        """Wait until all checkpoints are on disk."""
        self._manager.wait_until_finished()


def has_checkpoint(workdir: str | Path) -> bool:
    """Return whether a work directory has a checkpoint."""
    directory = Path(workdir) / "checkpoints"
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def read_config(workdir: str | Path) -> ConfigDict:
    """Read the config of a work directory.

    Raises:
      UserError: the directory is not a work directory, or its config is damaged.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a work directory: it has no config.json")
    try:
        return configs.from_json(path.read_text())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a config: {error}") from error
