"""What the work directories of a study say, and what it amounts to.

The measure is the top-1 accuracy after the last epoch, not the best one (which the test images
would choose), of the kept networks of the base's last kind: the student. Where a method keeps
several of them it is their mean. A maximum would favour large groups.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.study import Run, Study
from orc_jax import methods
from orc_jax.runtime import metrics

COLUMNS = ("variant", "seed", "top1", "measure", "ensemble", "promoted", "seconds", "workdir")


class Result(NamedTuple):
    """A finished run: top-1 in percent, lists in peer order.

    Attributes:
      promoted: share of the steps in which each peer was, if any ever are.
      seconds: of all epochs, the first one's compilation too.
    """

    variant: str
    seed: int
    top1: list[float]
    measure: float
    ensemble: float
    promoted: list[float]
    seconds: float
    workdir: Path


class Summary(NamedTuple):
    """A variant over its seeds.

    Attributes:
      seeds: how many are finished.
      measure, ensemble: (mean, standard deviation) in percent; the latter nan for one seed.
      p: of a two-sided paired t-test of the measure against the baseline, over the seeds that
        both have; nan where there is none.
    """

    seeds: int
    measure: tuple[float, float]
    ensemble: tuple[float, float]
    p: float


def result(run: Run, target: str) -> Result:
    """What a finished run amounts to, whose target network is compared."""
    records = metrics.read(run.workdir)
    test, train = records[-1]["test"], records[-1]["train"]
    config = run.config
    kept = methods.get(config.method.name).positions.kept(config.method, len(config.peers))
    totals = train.get("promotions_total", [])
    return Result(
        variant=run.variant,
        seed=run.seed,
        top1=test["top1"],
        measure=float(np.mean([test["top1"][i] for i in kept if config.peers[i].model == target])),
        ensemble=test["ensemble"]["top1"],
        promoted=[total / records[-1]["step"] for total in totals],
        seconds=sum(record["seconds"] for record in records),
        workdir=run.workdir,
    )


def summarise(study: Study, results: list[Result]) -> dict[str, Summary]:
    """Variant → what it amounts to, in the study's order; without those that have no result."""
    found = {
        name: {result.seed: result for result in results if result.variant == name}
        for name in study.variants
    }
    baseline = found[study.baseline]
    return {
        name: Summary(
            seeds=len(of_seed),
            measure=_mean_std([result.measure for result in of_seed.values()]),
            ensemble=_mean_std([result.ensemble for result in of_seed.values()]),
            p=float("nan") if name == study.baseline else _paired(of_seed, baseline),
        )
        for name, of_seed in found.items()
        if of_seed
    }


def _mean_std(values) -> tuple[float, float]:
    """Mean and standard deviation (n − 1)."""
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(spread)


def _paired(one, other) -> float:
    both = sorted(one.keys() & other.keys())
    differences = [one[seed].measure - other[seed].measure for seed in both]
    if len(both) < 2 or np.ptp(differences) < 1e-4:  # no spread but that of rounding, no test
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)  # which a paired t-test is


def write_csv(path: Path, results: list[Result]) -> None:
    """`results.csv`: a line a run; numbers of several peers have spaces between them."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for result in results:
        values = result._asdict()
        values["top1"] = " ".join(f"{value:.2f}" for value in result.top1)
        values["promoted"] = " ".join(f"{value:.4f}" for value in result.promoted)
        values["seconds"] = f"{result.seconds:.1f}"
        values["measure"] = f"{result.measure:.4f}"
        values["ensemble"] = f"{result.ensemble:.4f}"
        rows.writerow(values.values())
    write(path, text.getvalue())


def write(path: Path, text: str) -> None:
    """Replaces a file, all of it or nothing."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
