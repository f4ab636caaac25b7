"""The live table of a study."""

from rich.table import Table

from experiments.jobs import Jobs
from experiments.study import Run
from experiments.tables import Cell
from orc_jax.runtime import metrics


def table(runs: list[Run], work: Jobs, head: tuple[str, ...], rows: list[list[Cell]]) -> Table:
    """Every variant: seeds done, what runs now, and what came out so far.

    Args:
      runs: all of the study.
      work: how far they are.
      head, rows: of the study's table, see `tables`.
    """
    shown = Table()
    columns = (*head[:2], "running", *head[2:])
    for i, name in enumerate(columns):
        shown.add_column(name, justify="left" if i in (0, 2) else "right", no_wrap=True)
    cells_of = {cells[0].text: [_rich(cell) for cell in cells[2:]] for cells in rows}
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        seeds = f"{sum(run in work.finished for run in own)}/{len(own)}"
        if failed := sum(run in work.failed for run in own):
            seeds = f"[red]{failed} failed[/red] {seeds}"
        now = ", ".join(_progress(run) for run in own if run in work.running)
        shown.add_row(variant, seeds, now, *cells_of.get(variant, []))
    return shown


def _rich(cell: Cell) -> str:
    return f"[bold]{cell.text}[/bold]" if cell.best else cell.text


def _progress(run: Run) -> str:
    records = metrics.read(run.workdir)
    epoch = records[-1]["epoch"] if records else 0
    return f"seed {run.seed}: epoch {epoch}/{run.config.epochs}"
