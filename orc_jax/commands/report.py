"""Write one HTML page about one run or several."""

from pathlib import Path

from absl import flags

from orc_jax.commands import command_line
from orc_jax.insight.report.writing import report
from orc_jax.runtime.workdir import check_writable


def main() -> None:
    """Run the command."""
    out = flags.DEFINE_string("out", "report.html", "File to write.")
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "Checkpoint to use: last, best, or its step."
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Directory of the data, if it was moved.")

    def command(*workdirs):
        check_writable(Path(out.value).parent, "the folder of --out")
        report(workdirs, out.value, checkpoint.value, data_dir.value)
        print(f"{', '.join(workdirs)} → {out.value}")

    command_line.run(
        command, "RUN…", example="runs/digits-orc runs/digits-switokd --out=report.html"
    )
