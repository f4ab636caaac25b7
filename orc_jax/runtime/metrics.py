"""Metrics: from the sums over steps to records, and the files that records are written to.

A record holds the metrics of one epoch, as a JSON object on one line of `metrics.jsonl`.
Accuracies are in percent, losses in nats, and lists are in peer order.
"""

import csv
import io
import json
import math
from functools import cache
from pathlib import Path

import numpy as np

from orc_jax.errors import UserError, counted
from orc_jax.runtime import display, files
from orc_jax.runtime.processes import is_main
from orc_jax.runtime.tensorboard import Board

ROLE_COLUMNS = (
    "epoch",
    "step",
    "peer",
    "network",
    "promotions",
    "promotions_total",
    "promoted_share",
    "asked_share",
    "learned_share",
)


def training(sums: dict[str, np.ndarray], promotions: np.ndarray) -> dict:
    """Compute the training metrics of an epoch.

    Args:
      sums: `State.sums`, on the host.
      promotions: [P], `State.promotions`, on the host.

    Returns:
      The mean of every metric over the epoch's steps; "term_share" with the share of each loss
      term in their sum; for methods that promote peers, also how often each was promoted, in the
      epoch ("promotions") and since the run began ("promotions_total").
    """
    steps = float(sums["steps"])
    means = {name: value / max(steps, 1.0) for name, value in sums.items() if name != "steps"}
    terms = {
        name.removeprefix("term/"): means.pop(name)
        for name in sorted(means)
        if name.startswith("term/")
    }
    total = sum(terms.values()) or 1.0
    record = {name: _plain(value) for name, value in sorted(means.items())}
    record["term_share"] = {name: _plain(value / total) for name, value in terms.items()}
    if "promoted" in sums:
        record["promotions"] = _plain(np.rint(sums["promoted"]).astype(int))
        record["promotions_total"] = _plain(promotions)
    return record


def _finite(tree):
    """Return a record with None in place of numbers that JSON does not know."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def evaluation(sums: dict[str, np.ndarray], ensembles: list[str]) -> dict:
    """Compute the test metrics: top-1, top-5 and loss of each peer and each ensemble, diversity.

    Args:
      sums: of the evaluation steps, on the host; see `step.make_evaluation_step`.
      ensembles: names of the method's own ensembles.
    """
    scale = {"top1": 100.0, "top5": 100.0, "loss": 1.0}
    values = {name: scale[name] * sums[name] / sums["images"] for name in scale}
    diversity, size = sums["diversity"] / sums["images"], len(sums["top1"]) - 1 - len(ensembles)
    record = {name: _plain(value[:size]) for name, value in values.items()}
    record["ensemble"] = {name: _plain(value[size]) for name, value in values.items()}
    record["diversity"] = _plain(diversity[0])
    if ensembles:
        record["ensembles"] = {
            own: {name: _plain(value[size + i]) for name, value in values.items()}
            | {"diversity": _plain(diversity[i])}
            for i, own in enumerate(ensembles, start=1)
        }
    return record


def _plain(x):
    """Convert to Python numbers, rounded to the seven digits of float32."""
    x = np.asarray(x)
    if x.dtype.kind != "f":
        return x.tolist()
    return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[float])(x).tolist()


def chosen_by(record: dict) -> dict:
    """Return the evaluation that chooses: on validation images, or else on test images; or {}."""
    return record.get("val") or record.get("test") or {}


def target_top1(test: dict, kept: list[int], num_params: list[int]) -> float:
    """Return the top-1 accuracy that decides which checkpoint is the best.

    It is that of the best among the smallest kept networks: in a group of equal networks the best
    of all, in a group of several sizes the target student.

    Args:
      test: `evaluation`.
      kept: positions of the networks that training is for.
      num_params: number of parameters of each peer.
    """
    least = min(num_params[i] for i in kept)
    return max(test["top1"][i] for i in kept if num_params[i] == least)


class Writers:
    """The files that every epoch appends to: `metrics.jsonl`, `roles.csv` and TensorBoard's.

    A context manager. Of several processes only the main one writes.
    """

    def __init__(self, workdir: Path, names: list[str], step: int):
        """Open the files, and drop what an interrupted run wrote after its last checkpoint.

        The roles are written anew from the metrics, as far as these are there.

        Args:
          workdir: work directory of the run.
          names: the networks' names in peer order.
          step: of the checkpoint that training goes on from; 0 for a new run.

        Raises:
          UserError: a file cannot be read or written.
        """
        self._names = names
        self._board: Board | None = None
        if not is_main():
            return
        self._metrics = workdir / "metrics.jsonl"
        self._roles = workdir / "roles.csv"
        records = [record for record in read(workdir) if record["step"] <= step]
        files.write(self._metrics, "".join(map(_line, records)))
        rows = {record["step"]: self._role_rows(record) for record in records}
        rows = _rows_of(self._roles, step - 1) | rows
        header = ",".join(ROLE_COLUMNS) + "\n"
        files.write(self._roles, header + "".join(rows[at] for at in sorted(rows)))
        self._board = Board(workdir / "tensorboard", step + 1)

    def write(self, record: dict) -> None:
        """Append the record of an epoch to every file.

        Args:
          record: of the epoch.

        Raises:
          UserError: a file cannot be written.
        """
        if self._board is None:
            return
        files.append(self._metrics, _line(record))
        files.append(self._roles, self._role_rows(record))
        self._board.add(dict(_scalars(record, self._names)), record["step"])

    def _role_rows(self, record) -> str:
        train, text = record.get("train", {}), io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        for peer, name in enumerate(self._names):
            shares = [
                train[key][peer] if key in train else ""
                for key in ("promotions", "promotions_total", "promoted", "asked", "learned")
            ]
            rows.writerow([record["epoch"], record["step"], peer, name, *shares])
        return text.getvalue()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._board is not None:
            self._board.close()


def _rows_of(path: Path, last: int) -> dict[int, str]:
    """Return step → rows of a `roles.csv`, up to a step and without what are no rows."""
    rows: dict[int, str] = {}
    lines = path.read_text(errors="replace").split("\n")[1:-1] if path.exists() else []
    for line in lines:
        cells = line.split(",")
        if len(cells) == len(ROLE_COLUMNS) and cells[1].isdecimal() and int(cells[1]) <= last:
            rows[int(cells[1])] = rows.get(int(cells[1]), "") + f"{line}\n"
    return rows


def _line(record: dict) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _scalars(tree, names, tag=""):
    """Yield (tag, number) for every number of a record; tags of lists end with the peer's name."""
    for key, value in tree.items():
        path = f"{tag}/{key}" if tag else key
        if isinstance(value, dict):
            yield from _scalars(value, names, path)
        elif isinstance(value, list):
            yield from ((f"{path}/{i}_{names[i]}", x) for i, x in enumerate(value))
        else:
            yield path, value


def read(workdir: str | Path) -> list[dict]:
    """Read the records of a run, one for each epoch.

    A line that a kill cut off is skipped; other lines that are not records are too, with a warning.

    Raises:
      UserError: the file is there and cannot be read.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    records = [record for record in map(_record, lines) if record]
    if strange := len(lines) - len(records):
        _warn(path, strange)
    return records


def _record(line: str) -> dict | None:
    """Return the record on a line, or None if it is something else."""
    try:
        record = json.loads(line)
        is_record = isinstance(record["step"] + record["epoch"], int)
        is_record = is_record and isinstance(record.get("train", {}), dict)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return record if is_record else None


@cache  # commands read the metrics more than once
def _warn(path, strange):
    display.say(
        f"warning: {counted(strange, 'line')} of {path} {'is' if strange == 1 else 'are'} left "
        "out: not the record of an epoch"
    )
