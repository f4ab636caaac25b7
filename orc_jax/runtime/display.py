"""The progress of a run: a live table in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orc_jax.runtime.processes import is_main

REFRESH = 0.5  # seconds between updates, in a terminal
REFRESH_PLAIN = 30.0  # seconds between lines within an epoch, elsewhere


def console() -> Console:
    """Return a console that prints in the main process and is silent in the others.

    Text is printed as it is: a name may look like rich's markup or an emoji's code.
    """
    return Console(quiet=not is_main(), highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line."""
    console().print(text, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table; where there is no terminal, up to 200 columns wide."""
    screen = console()
    if not screen.is_terminal:
        screen.width = 200  # a pipe has no width, and rich would cut the table
    screen.print(table)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar within a context.

    Args:
      description: shown beside the bar.
      total: number of steps to the end.

    Yields:
      A function that advances the bar by one step.
    """
    screen = console()
    with Progress(transient=True, console=screen, disable=not screen.is_terminal) as bar:
        yield partial(bar.advance, bar.add_task(description, total=total))


class Display:
    """The progress of training.

    A context manager, within which the live table is on the screen.
    """

    def __init__(self, names: list[str], epochs: int, steps_per_epoch: int, batch_size: int):
        """Set up the display; nothing is shown yet.

        Args:
          names: the networks' names in peer order.
          epochs: of the whole run.
          steps_per_epoch: steps of each epoch.
          batch_size: images of each step.
        """
        self._console = console()
        self._names = names
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._split, self._test = "test", dict[str, list]()  # what was evaluated last
        self._refresh = REFRESH if self._console.is_terminal else REFRESH_PLAIN
        self._updated = (time.monotonic(), 0)  # when, and at which step
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
        """Print a line above the live table."""
        self._console.print(text, soft_wrap=True)

    def begin(self, step: int) -> None:
        """Start the clock at the first step of a run, or of a resumed run."""
        self._updated = (time.monotonic(), step)
        self._task = self._progress.add_task(
            "train",
            total=self._epochs * self._steps_per_epoch,
            completed=step,
            epoch=step // self._steps_per_epoch + 1,
            epochs=self._epochs,
            rate=0.0,
        )

    def due(self) -> bool:
        """Return whether it is time for `update`."""
        return time.monotonic() - self._updated[0] >= self._refresh

    def update(self, step: int, train: dict) -> None:
        """Show a step within an epoch.

        Args:
          step: steps done.
          train: `metrics.training` of the epoch so far.
        """
        now, (last_time, last_step) = time.monotonic(), self._updated
        rate = self._batch_size * (step - last_step) / max(now - last_time, 1e-9)
        self._updated = (now, step)
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
        """Show the record of a finished epoch."""
        if split := next((name for name in ("val", "test") if name in record), ""):
            self._split, self._test = split, record[split]
        if self._console.is_terminal:
            self.update(record["step"], record["train"])
            return
        self._updated = (time.monotonic(), record["step"])
        test = ""
        for split in ("val", "test"):
            if split in record:
                found = record[split]
                test += (
                    f"  {split} top-1 {_numbers(found['top1'])}  "
                    f"ensemble {found['ensemble']['top1']:.2f}"
                )
        role, shares = _changing_role(record["train"])
        shown = f"  {role} % {_numbers([100 * x for x in shares], 0)}" if role else ""
        # A resumed run may only have the last epoch's evaluation to do.
        rate = record["images_per_second"]
        speed = f"  {rate:,.0f} images/s" if rate else ""
        self.say(
            f"epoch {record['epoch']}/{self._epochs}  step {record['step']}{speed}{test}{shown}"
        )

    def _table(self, train):
        table = Table()
        for name in ("peer", "network", "train loss", "train top-1", f"{self._split} top-1"):
            table.add_column(name, justify="left" if name == "network" else "right")
        role, shares = _changing_role(train)
        if role:
            table.add_column(f"{role} in this epoch")
        for i, name in enumerate(self._names):
            test = f"{self._test['top1'][i]:.2f}" if self._test else ""
            cells = [str(i), name, f"{train['loss'][i]:.3f}", f"{train['top1'][i]:.2f}", test]
            if role:
                cells.append("█" * round(20 * shares[i]) + f" {100 * shares[i]:.0f} %")
            table.add_row(*cells)
        return table


def _changing_role(train):
    """Name what the peers do in some steps only, with the share of steps in which each does it."""
    if "promoted" in train:
        return "promoted", train["promoted"]
    if any(0 < share < 1 for share in train["learned"]):
        return "learned", train["learned"]
    return "", []


def _numbers(values, digits=2):
    return " ".join(f"{value:.{digits}f}" for value in values)


def show_peers(title, names, roles, num_params, promoted, test, kept, with_top5) -> None:
    """Print the table of peers after training or evaluation.

    Args:
      title: above the table.
      names, roles, num_params: network, role and number of parameters of each peer.
      promoted: [P], share of the steps in which each peer was promoted.
      test: `metrics.evaluation`.
      kept: positions of the networks that training is for; marked unless all are.
      with_top5: whether top-5 says anything, as it does of more than five classes.
    """
    scores = {"top1": "top-1 %", "top5": "top-5 %", "loss": "loss"}
    if not with_top5:
        del scores["top5"]

    def cells_of(own):
        return [f"{own[key]:.{4 if key == 'loss' else 2}f}" for key in scores]

    table = Table(title=Text(title), title_justify="left")  # no markup: it names a path
    for column in ("peer", "network", "role", "parameters", *scores.values()):
        left = column in ("network", "role")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    if any(promoted):
        table.add_column("promoted", justify="right", no_wrap=True)
    for i, name in enumerate(names):
        role = f"{roles[i]} (kept)" if i in kept and len(kept) < len(names) else roles[i]
        own = {key: test[key][i] for key in scores}
        cells = [str(i), name, role, f"{num_params[i]:,}", *cells_of(own)]
        if any(promoted):
            cells.append(f"{100 * promoted[i]:.1f} %" if promoted[i] else "")
        table.add_row(*cells)
    if len(names) > 1:
        table.add_section()
        ensembles = {"ensemble": test["ensemble"] | {"diversity": test["diversity"]}}
        ensembles |= {f"{name} ensemble": own for name, own in test.get("ensembles", {}).items()}
        for name, own in ensembles.items():
            table.add_row("", name, f"diversity {own['diversity']:.4f}", "", *cells_of(own))
    show(table)
