"""Checkpoints of a run.

A work directory holds `config.json` and `checkpoints/STEP`. Orbax writes them in the
background and atomically; the last one and the best one are kept.
"""

import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from orc_jax import config as configs
from orc_jax.errors import UserError
from orc_jax.state import State

# The score that makes a checkpoint the best one, see `metrics.target_top1`.
SCORE = "target_top1"


class Checkpoints:
    """The checkpoints of one work directory; a context manager.

    Reading alone (`read_only`) leaves the directory as it is.
    """

    def __init__(self, workdir: str | Path, read_only: bool = True):
        self._workdir = workdir

        def score(metrics):
            return metrics[SCORE]

        # Of a directory that is only read, Orbax warns that it is only read.
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
            return  # a process that is gone would be waited for
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: State, score: float | None) -> None:
        """Begins to write the state of a step; `score` is None where it was not evaluated."""
        if step not in self._manager.all_steps():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=None if score is None else {SCORE: score},
            )

    def step(self, which: str = "last") -> int | None:
        """The step of the "last" or "best" checkpoint or of one named by its number.

        Raises:
          UserError: there is no such checkpoint (but None for an empty directory).
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
        """The state of a step, with the shapes and placement of `like`."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        try:
            return self._manager.restore(step, args=args).state
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint of step {step} in {self._workdir} cannot be restored: {error}"
            ) from error

    def restore_arrays(self, step: int) -> dict:
        """The state of a step as nested dicts of numpy arrays, whatever its networks."""
        tree = self._manager.item_metadata(step).state
        if tree is None:
            raise UserError(f"the checkpoint of step {step} in {self._workdir} is damaged")
        return self.restore(step, jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree.tree))

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether a run has written a checkpoint there."""
    directory = Path(workdir) / "checkpoints"
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def read_config(workdir: str | Path) -> ConfigDict:
    """The config of a work directory; `UserError` if it is none."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a work directory: it has no config.json")
    try:
        return configs.from_json(path.read_text())
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a config: {error}") from error
