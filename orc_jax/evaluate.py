"""`python -m orc_jax.evaluate --workdir=DIR`: evaluates a run's checkpoint."""

from pathlib import Path

from absl import flags

from orc_jax import commands
from orc_jax.checkpoint import Checkpoints, read_config
from orc_jax.errors import UserError
from orc_jax.step import abstract_state, compile_steps
from orc_jax.train import evaluate_split, prepare, show_table


def evaluate(workdir: str | Path, which: str = "last", data: tuple | None = None) -> dict:
    """Restores a checkpoint of a run and evaluates every peer and the ensemble.

    Args:
      workdir: of the run.
      which: "last", "best" or the step of a checkpoint.
      data: the arrays that the run was given, if it was given arrays (see `train`).

    Returns:
      top-1, top-5 and loss, the same numbers that training logged at that step.

    Raises:
      UserError: no such run or checkpoint.
    """
    config = read_config(workdir)
    if config.data.name == "arrays" and data is None:
        raise UserError(
            f"{workdir} was trained on arrays from Python: evaluate it there too, with "
            "orc_jax.evaluate(workdir, data=...)"
        )
    checkpoints = Checkpoints(workdir)
    step = checkpoints.step(which)
    if step is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    setup = prepare(config, data)
    state = checkpoints.restore(step, abstract_state(*setup.state_args()))
    checkpoints.close()
    _, evaluation_step = compile_steps(config, setup.group, setup.method)
    test = evaluate_split(setup, evaluation_step, state.stacks)
    title = f"{workdir}, {which} checkpoint (step {step})"
    show_table(setup, title, test, state.promotions.tolist(), step)
    return test


def main() -> None:
    """The command line."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    flags.DEFINE_string("checkpoint", "last", "last, best, or the step of a checkpoint.")
    commands.run(lambda: evaluate(flags.FLAGS.workdir, flags.FLAGS.checkpoint))


if __name__ == "__main__":
    main()
