"""`python -m orc_jax predict DIR image.jpg folder/ …`: names the likeliest classes of images."""

import csv
import io
import json
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orc_jax.commands import command_line
from orc_jax.errors import UserError
from orc_jax.trained.model import load
from orc_jax.trained.predicting import images_of, predict

FORMATS = ("table", "csv", "json")


def as_csv(found) -> str:
    """A line an image: file, class_1, probability_1, class_2, …"""
    best = max(len(classes) for _, classes in found)
    names = [f"{name}_{i + 1}" for i in range(best) for name in ("class", "probability")]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", *names])
    for path, classes in found:
        rows.writerow([path, *(value for name, p in classes for value in (name, f"{p:.6f}"))])
    return text.getvalue()


def as_json(found) -> str:
    """A list of {"file", "classes": [{"class", "probability"}, …]}."""
    images = [
        {"file": path, "classes": [{"class": name, "probability": p} for name, p in classes]}
        for path, classes in found
    ]
    return json.dumps(images, indent=2) + "\n"


def show(found) -> None:
    """Prints a table."""
    table = Table("file", *(f"{i + 1}." for i in range(len(found[0][1]))))
    for path, classes in found:
        cells = [path, *(f"{name} {100 * p:.2f} %" for name, p in classes)]
        table.add_row(*map(escape, cells))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width, and the table must not be cut there
    console.print(table)


def main() -> None:
    """The command line."""
    form = flags.DEFINE_enum("format", "table", FORMATS, "How classes are written.")
    out = flags.DEFINE_string("out", "", "File for csv or json, in place of standard output.")
    batch_size = flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1)

    def command(directory, *arguments):
        if out.value and form.value == "table":
            raise UserError("--out needs --format=csv or --format=json")
        paths = images_of(arguments)
        found = list(predict(load(directory), paths, batch_size.value))
        if not found:
            raise UserError(f"none of the {len(paths)} images can be decoded")
        if form.value == "table":
            show(found)
            return
        text = {"csv": as_csv, "json": as_json}[form.value](found)
        if not out.value:
            print(text, end="")
            return
        try:
            # Names of files need not be text.
            Path(out.value).write_text(text, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UserError(f"{out.value} cannot be written: {error.strerror}") from error

    command_line.run(command, "DIR", "IMAGE…")
