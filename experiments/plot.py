"""The plot of a study: a point for every seed, mean and standard deviation of every variant."""

import math
from pathlib import Path

from experiments.results import Result, Summary
from orc_jax.insight import figures
from orc_jax.runtime import files

GREY, BLUE, ORANGE = "#888888", "#1f77b4", "#d95f02"


def save(
    path: Path, title: str, baseline: str, results: list[Result], summaries: dict[str, Summary]
) -> None:
    """Write a PNG file with one row for each variant, atomically.

    Args:
      path: of the file.
      title: above the plot.
      baseline: name of the variant that the others are compared with.
      results: the finished runs.
      summaries: the variants by name, see `results.summarise`.
    """
    names = list(summaries)
    figure = figures.new(7.5, 1.6 + 0.42 * len(names))
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        values = [result.measure for result in results if result.variant == name]
        axes.plot(values, [row - 0.18] * len(values), "o", color=GREY, alpha=0.55, markersize=4)
        mean, std = summaries[name].measure
        error = None if math.isnan(std) else std
        color = ORANGE if name == baseline else BLUE
        axes.errorbar(mean, row + 0.1, xerr=error, fmt="D", color=color, capsize=3, markersize=5)
    if baseline in summaries:
        axes.axvline(summaries[baseline].measure[0], color=ORANGE, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("top-1 accuracy in % (points: seeds; diamonds: mean ± standard deviation)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_name(f"{path.name}.new")
    with files.unwritable(path):
        figure.savefig(temporary, format="png", dpi=150)
        temporary.replace(path)
