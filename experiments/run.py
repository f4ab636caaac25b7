"""`python -m experiments.run experiments/orc_components.py --base=configs/digits.py` runs a study.

Finished runs are skipped, and runs that were stopped are resumed. `--config.KEY=VALUE` changes a
setting of all variants.
"""

import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags
from rich.live import Live

from experiments import jobs, plot, results, tables
from experiments import study as studies
from experiments.live import table
from orc_jax.commands import command_line
from orc_jax.errors import UserError, unknown
from orc_jax.insight import figures
from orc_jax.runtime import files
from orc_jax.runtime.display import console
from orc_jax.runtime.workdir import Lock


def main() -> None:
    """Run a study from the command line."""
    base = flags.DEFINE_string(
        "base", None, "Config file, with or without a preset; default: that of the study."
    )
    seeds = flags.DEFINE_integer("seeds", None, "Number of seeds; default: that of the study.", 1)
    out = flags.DEFINE_string("out", None, "Folder for all files; default runs/STUDY-BASE.")
    only = flags.DEFINE_list("only", [], "Variants to run, separated by commas; default: all.")
    count = flags.DEFINE_integer("jobs", None, "Simultaneous runs; default: one per GPU, or 1.", 1)
    # The runs parse their own settings.
    overrides = [argument for argument in sys.argv if argument.startswith("--config.")]
    sys.argv = [argument for argument in sys.argv if argument not in overrides]

    def command(path):
        jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
        plan = prepare(path, base.value, seeds.value, out.value, only.value, overrides)
        run_study(plan, count.value)

    command_line.run(command, "STUDY.py")


class Plan(NamedTuple):
    """A study on a base.

    Attributes:
      study: the study.
      title: title of its table and plot.
      base: the base.
      runs: the runs of the selected variants, finished or not.
      unselected: runs of all other variants, which appear in the table once they are finished.
    """

    study: studies.Study
    title: str
    base: studies.Base
    runs: list[studies.Run]
    unselected: list[studies.Run]


def prepare(
    path: str,
    base: str | None = None,
    seeds: int | None = None,
    out: str | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Plan:
    """Plan the runs of a study and check everything that can be known before they start.

    Args:
      path: file of the study.
      base: "FILE" or "FILE:PRESET"; None: the first base of the study.
      seeds: number of seeds; None: that of the study.
      out: folder for all files; None: runs/STUDY-BASE.
      only: names of the variants to run; empty: all.
      overrides: --config.KEY=VALUE, for all variants.

    Raises:
      UserError: a variant is impossible, or something else is wrong.
    """
    figures.new(1.0, 1.0)  # raises if matplotlib is missing
    study, title = studies.load(path)
    for name in only:
        if name not in study.variants:
            raise unknown(f"variant of {path}", name, study.variants)
    base = base or study.bases[0]
    name = f"{Path(path).stem}-{Path(base).name.replace('.py', '')}"
    folder = out or f"runs/{name.replace(':', '-').replace(',', '-')}"
    shared = studies.read_base(study, base, overrides, Path(folder))
    selected, seeds = only or list(study.variants), seeds or study.seeds
    runs, unselected = studies.plan(study, shared, selected, seeds), []
    for variant in study.variants.keys() - set(selected):
        with contextlib.suppress(UserError):  # a variant that is not selected may be impossible
            unselected += studies.plan(study, shared, [variant], seeds)
    return Plan(study, f"{title} ({shared.config.data.name})", shared, runs, unselected)


def run_study(plan: Plan, count: int | None) -> None:
    """Train the runs that are not finished, and write table and plot.

    The process exits with status 1 if a run failed or a signal stopped the study.

    Args:
      plan: of `prepare`.
      count: number of simultaneous runs; None: one per GPU, or 1.
    """
    base, runs = plan.base, plan.runs
    with Lock(base.out):
        devices = jobs.gpus()
        work = jobs.Jobs(runs, jobs.environments(count or len(devices) or 1, devices))
        terminal = console()
        say = partial(terminal.print, highlight=False, soft_wrap=True, markup=False)
        say(f"{plan.title}: {len(runs)} runs, {len(work.finished)} finished; files in {base.out}")
        head, rows = report(plan, work)

        with Live(console=terminal, auto_refresh=False) as live:

            def refresh():
                if terminal.is_terminal:
                    live.update(table(runs, work, head, rows), refresh=True)

            def report_end(run):
                nonlocal rows
                _, rows = report(plan, work)
                reason = work.failed.get(run)
                say(f"{run.name}: failed: {reason}" if reason else f"{run.name}: finished")

            work.run(refresh, report_end)
            refresh()
        if not terminal.is_terminal:
            say((base.out / "table.md").read_text())
    for run, reason in work.failed.items():
        print(f"error: {run.name}: {reason}", file=sys.stderr)
    if work.stopped:
        print("stopped: the same command goes on from here", file=sys.stderr)
    if work.failed or work.stopped:
        sys.exit(1)


def report(plan: Plan, work: jobs.Jobs) -> tuple[tuple[str, ...], list[list[tables.Cell]]]:
    """Write `results.csv`, tables and plot of the finished runs.

    Returns:
      Column names and rows of the table, see `tables`.
    """
    study, title, base, runs, unselected = plan
    target = base.networks[-1]
    finished = [run for run in runs if run in work.finished]
    finished += filter(jobs.is_finished, unselected)
    compared = [results.result(run, target) for run in finished if run.compared]
    order = list(study.variants)
    compared.sort(key=lambda result: (result.seed, order.index(result.variant)))
    summaries = results.summarise(study, compared)
    known = studies.published(study, base)
    head, rows = tables.header(known), tables.rows(summaries, known)
    notes = tables.notes(study, target, known)
    results.write_csv(base.out / "results.csv", compared)
    files.write(base.out / "table.md", tables.markdown(title, head, rows, notes))
    files.write(base.out / "table.tex", tables.latex(title, head, rows, notes))
    if summaries:
        plot.save(base.out / "plot.png", title, study.baseline, compared, summaries)
    return head, rows


if __name__ == "__main__":
    main()
