"""`python -m orc_jax.report RUN [RUN …] --out=report.html`: what runs learned, on one page.

The file needs no network and no other file: plots are SVG within it, images data URIs.
"""

import contextlib
from pathlib import Path

from absl import flags

from orc_jax import commands, figures
from orc_jax.errors import UserError
from orc_jax.report.findings import find
from orc_jax.report.page import page


def report(
    workdirs: list[str], out: str | Path, checkpoint: str = "last", data_dir: str = ""
) -> None:
    """Writes the page about these runs, from their records and a checkpoint of each.

    Args:
      workdirs: of the runs.
      out: the file.
      checkpoint, data_dir: see `run.restore`.

    Raises:
      UserError: no such run, checkpoint or data, or the file cannot be written.
    """
    figures.new(1, 1)  # or the error that matplotlib is missing
    out = Path(out)
    new = out.with_name(f".{out.name}.new")
    try:
        new.touch()  # before the work, which can take minutes
        content = page([find(workdir, checkpoint, data_dir) for workdir in workdirs])
        new.write_text(content, encoding="utf-8")
        new.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


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

    commands.run(command, "RUN…")


if __name__ == "__main__":
    main()
