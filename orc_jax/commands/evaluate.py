"""Evaluate a checkpoint of a run on the test images."""

from absl import flags

from orc_jax.commands import command_line
from orc_jax.evaluation import evaluate


def main() -> None:
    """Run the command."""
    workdir = flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "Checkpoint to use: last, best, or its step."
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Directory of the data, if it was moved.")
    command_line.run(
        lambda: evaluate(workdir.value, checkpoint.value, data_dir=data_dir.value),
        example="--workdir=runs/digits-orc --checkpoint=best",
    )
