"""The results of a study: finished runs, and their summaries by variant.

Variants are compared by their measure, the top-1 accuracy of the student (the last network of the
base) after the last epoch. It is not that of the best epoch, which the test images would select.
Where a method keeps several students it is their mean, because a maximum would favour large groups.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.study import Run, Study
from orc_jax import methods
from orc_jax.runtime import files, metrics

COLUMNS = ("variant", "seed", "top1", "measure", "ensemble", "promoted", "seconds", "workdir")


class Result(NamedTuple):
    """The result of a finished run. Lists are in peer order.

    Attributes:
      variant: name of the variant.
      seed: seed of the run.
      top1: top-1 accuracy of each peer in percent.
      measure: mean top-1 accuracy of the students that are kept, in percent.
      ensemble: top-1 accuracy of the ensemble in percent.
      promoted: share of the steps in which each peer was promoted; empty without promotions.
      seconds: duration of all epochs, without the first step, which is compiled.
      workdir: work directory of the run.
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
    """The results of a variant over its seeds.

    Attributes:
      seeds: number of finished runs.
      measure: (mean, standard deviation) of `Result.measure`; the latter is nan for one seed.
      ensemble: the same for `Result.ensemble`.
      p: p-value of a two-sided paired t-test of the measure against the baseline, over the seeds
        that both have; nan for the baseline and where the test is impossible.
    """

    seeds: int
    measure: tuple[float, float]
    ensemble: tuple[float, float]
    p: float


def result(run: Run, target: str) -> Result:
    """Read the result of a finished run from its work directory.

    Args:
      run: the run.
      target: the network whose accuracy is compared.
    """
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
    """Summarise results by variant, in the order of the study.

    Args:
      study: the study.
      results: of finished runs; variants without any are left out.
    """
    by_seed = {
        name: {result.seed: result for result in results if result.variant == name}
        for name in study.variants
    }
    baseline = by_seed[study.baseline]
    return {
        name: Summary(
            seeds=len(variant),
            measure=_mean_std([result.measure for result in variant.values()]),
            ensemble=_mean_std([result.ensemble for result in variant.values()]),
            p=float("nan") if name == study.baseline else _paired_test(variant, baseline),
        )
        for name, variant in by_seed.items()
        if variant
    }


def _mean_std(values) -> tuple[float, float]:
    """Compute the mean and the sample standard deviation (n − 1)."""
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(spread)


def _paired_test(variant: dict[int, Result], baseline: dict[int, Result]) -> float:
    """Compute the p-value of a paired t-test, which is a one-sample test of the differences."""
    seeds = sorted(variant.keys() & baseline.keys())
    differences = [variant[seed].measure - baseline[seed].measure for seed in seeds]
    if len(seeds) < 2 or np.ptp(differences) < 1e-4:  # equal up to rounding
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)


def write_csv(path: Path, results: list[Result]) -> None:
    """Write `results.csv`, a line for each run; spaces separate the numbers of several peers."""
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
    files.write(path, text.getvalue())
