"""`python -m experiments.run experiments/orc_components.py --base=configs/digits.py`: runs a study.

What is finished is skipped, what was stopped goes on. `--config.KEY=VALUE` changes a setting of
all variants.
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
from orc_jax.runtime.display import console
from orc_jax.runtime.workdir import Lock


def main() -> None:
    """The command line."""
    base = flags.DEFINE_string(
        "base", None, "Config file, with or without a preset; default: the study's own."
    )
    seeds = flags.DEFINE_integer("seeds", None, "How many; default: the study's own.", 1)
    out = flags.DEFINE_string("out", None, "Where all files go; default runs/STUDY-BASE.")
    only = flags.DEFINE_list("only", [], "Variants to run, with commas; default: all.")
    count = flags.DEFINE_integer("jobs", None, "Runs at once; default: one a GPU, or 1.", 1)
    # Settings of the runs are theirs to parse.
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
      title: of table and plot.
      runs: what is to be trained, or was already.
      others: of variants that are not asked for, for the tables.
    """

    study: studies.Study
    title: str
    base: studies.Base
    runs: list[studies.Run]
    others: list[studies.Run]


def prepare(
    path: str,
    base: str | None = None,
    seeds: int | None = None,
    out: str | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Plan:
    """Checks everything that can be known before anything starts; the arguments are the flags.

    Raises:
      UserError: something is wrong.
    """
    figures.new(1, 1)  # or the error that matplotlib is missing
    study, title = studies.load(path)
    for name in only:
        if name not in study.variants:
            raise unknown(f"variant of {path}", name, study.variants)
    base = base or study.bases[0]
    place = f"{Path(path).stem}-{Path(base).name.replace('.py', '')}"
    folder = out or f"runs/{place.replace(':', '-').replace(',', '-')}"
    shared = studies.read_base(study, base, overrides, Path(folder))
    names, seeds = only or list(study.variants), seeds or study.seeds
    runs, others = studies.plan(study, shared, names, seeds), []
    for name in study.variants.keys() - set(names):
        with contextlib.suppress(UserError):  # what is not asked for need not be possible
            others += studies.plan(study, shared, [name], seeds)
    return Plan(study, f"{title} ({shared.config.data.name})", shared, runs, others)


def run_study(plan: Plan, count: int | None) -> None:
    """Trains what is not finished, writes table and plot; exits with 1 unless all is well.

    Args:
      count: runs at once; None: one a GPU, or 1.
    """
    base, runs = plan.base, plan.runs
    with Lock(base.out):
        devices = jobs.gpus()
        work = jobs.Jobs(runs, jobs.environments(count or len(devices) or 1, devices))
        shown = console()
        say = partial(shown.print, highlight=False, soft_wrap=True, markup=False)
        say(f"{plan.title}: {len(runs)} runs, {len(work.finished)} finished; files in {base.out}")
        head, rows = report(plan, work)

        with Live(console=shown, auto_refresh=False) as live:

            def look():
                if shown.is_terminal:
                    live.update(table(runs, work, head, rows), refresh=True)

            def ended(run):
                nonlocal rows
                _, rows = report(plan, work)
                reason = work.failed.get(run)
                say(f"{run.name}: failed: {reason}" if reason else f"{run.name}: finished")

            work.run(look, ended)
            look()
        if not shown.is_terminal:
            say((base.out / "table.md").read_text())
    for run, reason in work.failed.items():
        print(f"error: {run.name}: {reason}", file=sys.stderr)
    if work.stopped:
        print("stopped: the same command goes on from here", file=sys.stderr)
    if work.failed or work.stopped:
        sys.exit(1)


def report(plan: Plan, work: jobs.Jobs) -> tuple[tuple[str, ...], list[list[tables.Cell]]]:
    """Writes `results.csv`, tables and plot of what is finished; returns the table."""
    study, title, base, runs, others = plan
    target = base.networks[-1]
    finished = [run for run in runs if run in work.finished]
    finished += filter(jobs.is_finished, others)
    found = [results.result(run, target) for run in finished if run.compared]
    order = list(study.variants)
    found.sort(key=lambda result: (result.seed, order.index(result.variant)))
    summaries = results.summarise(study, found)
    head, rows = tables.header(study, base.key), tables.rows(study, base.key, summaries)
    notes = tables.notes(study, target)
    results.write_csv(base.out / "results.csv", found)
    results.write(base.out / "table.md", tables.markdown(title, head, rows, notes))
    results.write(base.out / "table.tex", tables.latex(title, head, rows, notes))
    if summaries:
        plot.save(base.out / "plot.png", title, study.baseline, found, summaries)
    return head, rows


if __name__ == "__main__":
    main()
