"""`python -m orc_jax.predict DIR image.jpg folder/ …`: the likeliest classes of image files."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orc_jax import commands, inference
from orc_jax.data import decode, folder
from orc_jax.errors import UserError

BEST = 5
FORMATS = ("table", "csv", "json")


def predict(
    model: inference.Model, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """The likeliest classes of image files; those that cannot be decoded are reported on
    standard error and passed over.

    Args:
      model: of `inference.load`.
      paths: of images.
      batch_size: how many go through the network at once.

    Yields:
      An image's path, and (class, probability) from the likeliest on.

    Raises:
      UserError: the network does not take images from files.
    """
    if not decode.come_from_files(model.image_shape):
        height, width, channels = model.image_shape
        raise UserError(
            f"images of {height}×{width} pixels and {channels} channels do not come from files: "
            "use orc_jax.load(…).predict(images)"
        )
    # Always as many rows, so that one program does for all.
    rows = np.zeros((min(batch_size, len(paths)), *model.image_shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), len(rows)):
            batch = paths[first : first + len(rows)]
            decoded = pool.map(partial(_decoded, model), batch)
            found = [(path, image) for path, image in zip(batch, decoded, strict=True)]
            found = [(path, image) for path, image in found if image is not None]
            for row, (_, image) in zip(rows, found, strict=False):
                row[:] = image
            for (path, _), probabilities in zip(found, model.predict(rows), strict=False):
                best = np.argsort(-probabilities, kind="stable")[:BEST]
                yield path, [(model.class_names[i], float(probabilities[i])) for i in best]


def _decoded(model, path):
    try:
        return decode.decode(path, model.image_shape[0], model.resize, model.image_shape[2])
    except decode.FAULTS as error:
        try:
            why = decode.reason(path, error)
        except UserError as unreadable:
            why = str(unreadable)
        print(f"passed over {path}: {why}", file=sys.stderr, flush=True)


def images_of(arguments: Sequence[str]) -> list[str]:
    """Image files, and those in folders and below.

    Raises:
      UserError: there is no such file, or no image in a folder.
    """
    paths = []
    for path in arguments:
        if os.path.isdir(path):
            below = list(folder.images_below(path))
            if not below:
                raise UserError(f"{path} has no image ({', '.join(folder.SUFFIXES)})")
            paths += below
        elif os.path.exists(path):
            paths.append(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    return paths


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
        found = list(predict(inference.load(directory), paths, batch_size.value))
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

    commands.run(command, "DIR", "IMAGE…")


if __name__ == "__main__":
    main()
