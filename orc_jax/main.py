"""`python -m orc_jax.main --config=configs/digits.py`: trains what a config describes."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from orc_jax import commands
from orc_jax.errors import UserError
from orc_jax.train import train


def main() -> None:
    """The command line."""
    config = config_flags.DEFINE_config_file(
        "config", None, "Config file, with a preset after a colon: configs/cifar100.py:orc."
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Where the run's files go; default runs/CONFIG-PRESET."
    )
    flags.mark_flag_as_required("config")

    def command():
        try:
            config.value.method
        except OSError as error:
            raise UserError(f"no such config file: {flags.FLAGS['config'].config_filename}") from error
        train(config.value, workdir.value or default_workdir())

    commands.run(command)


def default_workdir() -> Path:
    """runs/CONFIG-PRESET, e.g. runs/cifar100-orc_peers."""
    path, _, preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    method = flags.FLAGS.config.method.name
    return Path("runs") / f"{Path(path).stem}-{preset or method}"


if __name__ == "__main__":
    main()
