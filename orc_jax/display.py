"""What a run shows: a live table in a terminal, plain lines elsewhere."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

REFRESH = 0.5  # seconds between looks at the device, in a terminal
REFRESH_PLAIN = 30.0  # seconds between lines within an epoch, elsewhere


class Display:
    """Shows the progress of training; a context manager."""

    def __init__(self, names: list[str], epochs: int, steps_per_epoch: int, batch_size: int):
        self._console = Console()
        self._names = names
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._test = None
        self._refresh = REFRESH if self._console.is_terminal else REFRESH_PLAIN
        self._looked = (time.monotonic(), 0)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self):
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live part."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def begin(self, step: int) -> None:
        """Starts the clock at a run's (or a resumed run's) first step."""
        self._looked = (time.monotonic(), step)
        self._task = self._progress.add_task(
            "train",
            total=self._epochs * self._steps_per_epoch,
            completed=step,
            epoch=step // self._steps_per_epoch + 1,
            epochs=self._epochs,
            rate=0.0,
        )

    def due(self) -> bool:
        """Whether it is time for `update`."""
        return time.monotonic() - self._looked[0] >= self._refresh

    def update(self, step: int, train: dict) -> None:
        """Shows a step within an epoch.

        Args:
          step: steps done.
          train: `metrics.training` of the epoch so far.
        """
        now, before = time.monotonic(), self._looked
        rate = self._batch_size * (step - before[1]) / max(now - before[0], 1e-9)
        self._looked = (now, step)
        if not self._console.is_terminal:
            self.say(
                f"epoch {step / self._steps_per_epoch:.1f}/{self._epochs}  step {step}  "
                f"{rate:,.0f} images/s  train top-1 {_numbers(train['top1'])}"
            )
            return
        epoch = min(step // self._steps_per_epoch + 1, self._epochs)
        self._progress.update(self._task, completed=step, epoch=epoch, rate=rate)
        self._live.update(Group(self._table(train), self._progress), refresh=True)

    def epoch(self, record: dict) -> None:
        """Shows the record of a finished epoch."""
        self._test = record.get("test", self._test)
        if self._console.is_terminal:
            self.update(record["step"], record["train"])
            return
        self._looked = (time.monotonic(), record["step"])
        test = ""
        if "test" in record:
            top1 = record["test"]["top1"]
            test = (
                f"  test top-1 {_numbers(top1)}  ensemble {record['test']['ensemble']['top1']:.2f}"
            )
        promoted = _numbers([100 * x for x in record["train"]["promoted"]], 0)
        self.say(
            f"epoch {record['epoch']}/{self._epochs}  step {record['step']}  "
            f"{record['images_per_second']:,.0f} images/s{test}  promoted % {promoted}"
        )

    def _table(self, train):
        table = Table()
        for name in ("peer", "network", "train loss", "train top-1", "test top-1"):
            table.add_column(name, justify="left" if name == "network" else "right")
        table.add_column("promoted in this epoch")
        for i, name in enumerate(self._names):
            test = f"{self._test['top1'][i]:.2f}" if self._test else ""
            share = train["promoted"][i]
            bar = "█" * round(20 * share) + f" {100 * share:.0f} %"
            table.add_row(
                str(i), name, f"{train['loss'][i]:.3f}", f"{train['top1'][i]:.2f}", test, bar
            )
        return table


def _numbers(values, digits=2):
    return " ".join(f"{value:.{digits}f}" for value in values)


def show_peers(title, names, roles, num_params, promoted, test) -> None:
    """Prints the table at a run's end.

    Args:
      title: above it.
      names, roles, num_params: of each peer.
      promoted: [P] share of the steps in which it was promoted; None if it never can be.
      test: `metrics.evaluation`.
    """
    table = Table(title=title, title_justify="left")
    for column in ("peer", "network", "role", "parameters", "top-1 %", "top-5 %", "loss"):
        left = column in ("network", "role")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    table.add_column("promoted", justify="right", no_wrap=True)
    for i, name in enumerate(names):
        scores = _scores(test["top1"][i], test["top5"][i], test["loss"][i])
        promotions = "" if promoted[i] is None else f"{100 * promoted[i]:.1f} %"
        table.add_row(str(i), name, roles[i], f"{num_params[i]:,}", *scores, promotions)
    table.add_section()
    ensemble = test["ensemble"]
    scores = _scores(ensemble["top1"], ensemble["top5"], ensemble["loss"])
    table.add_row("", "ensemble", "", "", *scores, "")
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a pipe has no width, and the table must not be cut there
    console.print(table)


def _scores(top1, top5, loss):
    return f"{top1:.2f}", f"{top5:.2f}", f"{loss:.4f}"
