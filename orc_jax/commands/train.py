"""Train the group that a config describes, or resume its run."""

import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from orc_jax.commands import command_line
from orc_jax.errors import UserError
from orc_jax.runtime import processes
from orc_jax.training import train


def main() -> None:
    """Run the command."""
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, with a preset after a colon: configs/cifar100.py:orc. "
        "--config.KEY=VALUE changes a setting.",
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Work directory of the run (default: runs/CONFIG-PRESET)."
    )
    distributed = flags.DEFINE_bool(
        "distributed",
        None,
        "Whether to join other processes (default: under SLURM and Open MPI, or if "
        "JAX_COORDINATOR_ADDRESS is set).",
    )
    flags.mark_flag_as_required("config")

    def command():
        processes.join(distributed.value)
        path, _, preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        try:
            method = config.value.method.name
        except OSError as error:
            raise UserError(f"no such config file: {path}") from error
        name = f"{Path(path).stem}-{preset or method}".replace(":", "-").replace(",", "-")
        with processes.lost_processes_are_named():
            result = train(config.value, workdir.value or f"runs/{name}")
        if not result.finished and jax.process_count() > 1:
            sys.exit(processes.STOPPED)

    command_line.run(
        command, example="--config=configs/digits.py:dml --config.epochs=5 --workdir=runs/dml"
    )
