"""The live table of a study in a terminal."""

from rich.table import Table

from experiments.jobs import Jobs
from experiments.study import Run
from experiments.tables import Cell
from orc_jax.runtime import metrics


def table(runs: list[Run], work: Jobs, head: tuple[str, ...], rows: list[list[Cell]]) -> Table:
    """Return a table of every variant with its finished seeds, its running seeds and its results.

    Args:
      runs: all runs of the study.
      work: their processes.
      head: names of the columns of the study's table, see `tables.header`.
      rows: rows of the study's table, see `tables.rows`.
    """
    live_table = Table()
    columns = (*head[:2], "running", *head[2:])
    for i, name in enumerate(columns):
        live_table.add_column(name, justify="left" if i in (0, 2) else "right", no_wrap=True)
    cells_of = {cells[0].text: [_rich(cell) for cell in cells[2:]] for cells in rows}
    for variant in dict.fromkeys(run.variant for run in runs):
        seeds_of = [run for run in runs if run.variant == variant]
        seeds = f"{sum(run in work.finished for run in seeds_of)}/{len(seeds_of)}"
        if failed := sum(run in work.failed for run in seeds_of):
            seeds = f"[red]{failed} failed[/red] {seeds}"
        running = ", ".join(_progress(run) for run in seeds_of if run in work.running)
        live_table.add_row(variant, seeds, running, *cells_of.get(variant, []))
    return live_table


def _rich(cell: Cell) -> str:
    return f"[bold]{cell.text}[/bold]" if cell.best else cell.text


def _progress(run: Run) -> str:
    records = metrics.read(run.workdir)
    epoch = records[-1]["epoch"] if records else 0
    return f"seed {run.seed}: epoch {epoch}/{run.config.epochs}"
