"""Write the report about runs.

The page needs no network and no other file: its plots are inline SVG, its images data URIs. All
markup is in templates/, where every value is escaped; the modules here gather the values.
"""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

from orc_jax.errors import UserError
from orc_jax.insight import figures
from orc_jax.insight.report import page
from orc_jax.insight.report.findings import find


@functools.cache
def environment():
    """Load the templates, with escaping of all values.

    Raises:
      UserError: Jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError("the report needs Jinja2: pip install -e '.[plots]'") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("orc_jax.insight.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def report(
    workdirs: Sequence[str], out: str | Path, checkpoint: str = "last", data_dir: str = ""
) -> None:
    """Write a page about runs, from their records and a checkpoint of each.

    Args:
      workdirs: work directories of the runs.
      out: file to write; an older one is replaced.
      checkpoint: "last", "best" or the step of a checkpoint.
      data_dir: directory of the data, if it was moved.

    Raises:
      UserError: there is no such run, checkpoint or data, a package is missing, or the file
        cannot be written.
    """
    figures.new(1, 1)  # raises if matplotlib is missing
    template = environment().get_template("page.html")
    if not Path(out).name:
        raise UserError(f"the report's file is {str(out)!r}, allowed: the path of a file")
    out = Path(out)
    new = out.with_name(f".{out.name}.new")
    try:
        new.touch()  # fails before the work, which can take minutes, rather than after it
        runs = [find(workdir, checkpoint, data_dir) for workdir in workdirs]
        new.write_text(template.render(page.context(runs)), encoding="utf-8")
        new.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
