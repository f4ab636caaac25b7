"""`python -m orc_jax.evaluate --workdir=DIR`: evaluates a run's checkpoint."""

from absl import flags

from orc_jax.commands import command_line
from orc_jax.evaluation import evaluate


def main() -> None:
    """The command line."""
    workdir = flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "last, best, or the step of a checkpoint."
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Where the data is, if it was moved.")
    command_line.run(lambda: evaluate(workdir.value, checkpoint.value, data_dir=data_dir.value))
