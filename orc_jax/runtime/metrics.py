"""From the step's sums to what is logged, and the files that it is logged to.

A record is what one epoch leaves behind: a JSON object, one line of `metrics.jsonl`.
Accuracies are in percent, losses in nats, lists are in peer order.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from orc_jax.runtime.processes import is_main

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
    """What the epoch's train steps say.

    Args:
      sums: `State.sums`, on the host.
      promotions: [P] `State.promotions`.

    Returns:
      Means over the epoch's steps of every metric; "term/NAME" becomes the share of that
      loss in their total; promotions, where the method has any, also as counts.
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


def evaluation(sums: dict[str, np.ndarray]) -> dict:
    """Test top-1, top-5 and loss of every peer and of the ensemble, and the peers' diversity."""
    scale = {"top1": 100.0, "top5": 100.0, "loss": 1.0}
    values = {name: scale[name] * sums[name] / sums["images"] for name in scale}
    record = {name: _plain(value[:-1]) for name, value in values.items()}
    record["ensemble"] = {name: _plain(value[-1]) for name, value in values.items()}
    record["diversity"] = _plain(sums["diversity"][0] / sums["images"])
    return record


def _plain(x):
    """Python numbers; float32 with the digits that it has."""
    x = np.asarray(x)
    if x.dtype.kind != "f":
        return x.tolist()
    return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[float])(x).tolist()


def target_top1(test: dict, kept: list[int], num_params: list[int]) -> float:
    """Top-1 accuracy of the best of the smallest kept networks: what makes a checkpoint "best".

    In a group of equals that is the best of them all, in a group of several sizes the
    target student.
    """
    least = min(num_params[i] for i in kept)
    return max(test["top1"][i] for i in kept if num_params[i] == least)


class Writers:
    """The files of a work directory that grow by an epoch: metrics, roles, TensorBoard.

    A context manager.
    """

    def __init__(self, workdir: Path, names: list[str], step: int):
        """Opens them; lines of epochs after `step`, from before an interruption, go.

        Of several processes the main one alone writes.
        """
        self._names = names
        self._board = None
        if not is_main():
            return
        self._metrics = workdir / "metrics.jsonl"
        self._roles = workdir / "roles.csv"
        _keep(self._metrics, lambda line: json.loads(line)["step"] <= step)
        _keep(self._roles, lambda line: line.startswith("epoch") or int(line.split(",")[1]) <= step)
        if not self._roles.exists():
            self._roles.write_text(",".join(ROLE_COLUMNS) + "\n")
        self._board = _summary_writer()(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict) -> None:
        """Appends an epoch's record to every file."""
        if self._board is None:
            return
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._write_roles(record)
        for tag, value in _scalars(record, self._names):
            self._board.add_scalar(tag, value, record["step"])
        self._board.flush()

    def _write_roles(self, record):
        train = record["train"]
        with self._roles.open("a", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            for peer, name in enumerate(self._names):
                shares = [
                    train[key][peer] if key in train else ""
                    for key in ("promotions", "promotions_total", "promoted", "asked", "learned")
                ]
                rows.writerow([record["epoch"], record["step"], peer, name, *shares])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._board is not None:
            self._board.close()


def _summary_writer():
    """tensorboardX's class. PyTorch is hidden from it: it would import that, for two seconds,
    to know its tensors, and no other command needs either."""
    sys.modules.setdefault("torch", None)
    try:
        from tensorboardX import SummaryWriter
    finally:
        if sys.modules["torch"] is None:
            del sys.modules["torch"]
    return SummaryWriter


def _keep(path: Path, wanted) -> None:
    """Drops the lines that are not wanted, atomically; a line cut off by a kill goes too."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and wanted(line)]
    if kept != lines:
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(kept))
        temporary.replace(path)


def _scalars(tree, names, tag=""):
    """(tag, number) of everything in a record; a list in peer order gets the peers' names."""
    for key, value in tree.items():
        path = f"{tag}/{key}" if tag else key
        if isinstance(value, dict):
            yield from _scalars(value, names, path)
        elif isinstance(value, list):
            yield from ((f"{path}/{i}_{names[i]}", x) for i, x in enumerate(value))
        else:
            yield path, value


def read(workdir: str | Path) -> list[dict]:
    """The records of a run, one an epoch; a line that a kill cut off is passed over."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
