"""Print the most probable classes of image files."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.table import Table

from orc_jax.commands import command_line
from orc_jax.data.folder import printable
from orc_jax.errors import UserError, counted
from orc_jax.runtime import display, files
from orc_jax.runtime.workdir import check_writable
from orc_jax.trained.model import load
from orc_jax.trained.predicting import Prediction, images_of, predict

FORMATS = ("table", "csv", "json")


def as_csv(predictions: Sequence[Prediction]) -> str:
    """Write a line for each image: file, class_1, probability_1, class_2, …"""
    best = max(len(classes) for _, classes in predictions)
    names = [f"{name}_{i + 1}" for i in range(best) for name in ("class", "probability")]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", *names])
    for path, classes in predictions:
        rows.writerow([path, *(value for name, p in classes for value in (name, f"{p:.6f}"))])
    return text.getvalue()


def as_json(predictions: Sequence[Prediction]) -> str:
    """Write a list of {"file", "classes": [{"class", "probability"}, …]}; null is not finite."""
    images = [
        {
            "file": path,
            "classes": [
                {"class": name, "probability": p if math.isfinite(p) else None}
                for name, p in classes
            ],
        }
        for path, classes in predictions
    ]
    return files.to_json(images)


def as_table(predictions: Sequence[Prediction]) -> Table:
    """Make a table with a row for each image."""
    table = Table("file", *(f"{i + 1}." for i in range(len(predictions[0][1]))))
    for path, classes in predictions:
        cells = [printable(path), *(f"{name} {100 * p:.2f} %" for name, p in classes)]
        table.add_row(*cells)
    return table


def main() -> None:
    """Run the command."""
    form = flags.DEFINE_enum("format", "table", FORMATS, "Form of the output.")
    out = flags.DEFINE_string("out", "", "File for csv or json, in place of standard output.")
    batch_size = flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1)

    def command(directory, *arguments):
        if out.value and form.value == "table":
            raise UserError("--out needs --format=csv or --format=json")
        if out.value:
            check_writable(Path(out.value).parent, "the folder of --out")
        paths = images_of(arguments)
        predictions = list(predict(load(directory), paths, batch_size.value))
        if not predictions:
            raise UserError(f"{counted(len(paths), 'image')}: none can be decoded")
        if form.value == "table":
            display.show(as_table(predictions))
            return
        text = {"csv": as_csv, "json": as_json}[form.value](predictions)
        if not out.value:
            print(text, end="")
            return
        files.write(Path(out.value), text)

    command_line.run(command, "DIR", "IMAGE…", example="exports/digits image.jpg folder/")
