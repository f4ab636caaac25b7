"""`python -m orc_jax report RUN [RUN …] --out=report.html`: writes one page about runs."""

from absl import flags

from orc_jax.commands import command_line
from orc_jax.insight.report.writing import report


def main() -> None:
    """The command line."""
    out = flags.DEFINE_string("out", "report.html", "The file to be written.")
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "last, best, or the step of a checkpoint."
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Where the data is, if it was moved.")

    def command(*workdirs):
        report(workdirs, out.value, checkpoint.value, data_dir.value)
        print(f"{', '.join(workdirs)} → {out.value}")

    command_line.run(command, "RUN…")
