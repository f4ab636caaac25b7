"""Writes what runs learned to one page.

The file needs no network and no other file: plots are SVG within it, images data URIs.
"""

import contextlib
from pathlib import Path

from orc_jax.errors import UserError
from orc_jax.insight import figures
from orc_jax.insight.report.findings import find
from orc_jax.insight.report.page import page


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
