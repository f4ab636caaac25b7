"""Train the group that a config describes, or resume its run."""

import re
import sys
import zlib
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from orc_jax import checks
from orc_jax.commands import command_line, config_file
from orc_jax.config import UNNAMED
from orc_jax.runtime import display, processes
from orc_jax.training import train

LONGEST = 100  # characters of overrides in the name of a directory


def overrides_in_name(arguments: list[str]) -> str:
    """Return the end of the default work directory's name: the overrides, or a part and a checksum.

    Args:
      arguments: of the command line.
    """
    # A value may stand behind its key, or be an argument of its own.
    text = "\n".join(arguments)
    found = re.findall(r"^--?config\.([^=\n]+[=\n].*)$", text, re.MULTILINE)
    found = [override.replace("\n", "=", 1) for override in found]
    found = sorted({text for text in found if text.partition("=")[0] not in UNNAMED})
    name = "".join("-" + re.sub(r"[^\w.=+-]+", "_", text) for text in found)
    if len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{zlib.crc32(name.encode()):08x}"


def main() -> None:
    """Run the command."""
    config_flags.DEFINE_config_file(
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
    extend = flags.DEFINE_bool(
        "extend",
        False,
        "Give a run more epochs although its learning rate is a cosine over all of them: it jumps "
        "to where the longer cosine has it.",
    )
    flags.mark_flag_as_required("config")

    def command():
        config, path, preset = config_file.load()
        checks.check_form(config)
        name = f"{Path(path).stem}-{preset or config.method.name}"
        name = name.replace(":", "-").replace(",", "-")
        directory = workdir.value or f"runs/{name}{overrides_in_name(sys.argv[1:])}"
        with processes.lost_processes_are_named():
            result = train(config, directory, extend=extend.value)
        if not result.finished:
            sys.exit(130 if result.stopped_by == "SIGINT" else processes.STOPPED)
        display.say(
            f"files in {directory}. Next: orc-jax report {directory}, orc-jax predict "
            f"{directory} IMAGE, orc-jax export --workdir={directory} --out=DIR"
        )

    command_line.run(
        command,
        example="--config=configs/digits.py:dml --config.epochs=5 --workdir=runs/dml",
        first=lambda: processes.join(distributed.value),
    )
