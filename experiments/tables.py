"""The table of a study: in a terminal, in Markdown and in LaTeX, from the same cells."""

import math
from typing import NamedTuple

from experiments.results import Summary
from experiments.study import Study

HEADER = ("variant", "seeds", "top-1 %", "p", "ensemble %", "published %")


TEX = {
    **{"±": r"$\pm$", "<": "$<$", ">": "$>$", "–": "--", "×": r"$\times$"},
    **{"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"},
}


class Cell(NamedTuple):
    """A cell's text, and whether it is the best of its column."""

    text: str
    best: bool = False


def rows(study: Study, key: str, summaries: dict[str, Summary]) -> list[list[Cell]]:
    """A row of cells for every variant that has a result, in the columns of `header`.

    Args:
      key: of the base, as `Study.published` has it.
    """
    published = study.published.get(key, {})
    seeds = max((one.seeds for one in summaries.values()), default=0)
    best = {  # of those with all seeds: others may have had the easier ones
        column: max(
            (round(getattr(one, column)[0], 2) for one in summaries.values() if one.seeds == seeds),
            default=0,
        )
        for column in ("measure", "ensemble")
    }

    def score(one, column):
        mean, std = getattr(one, column)
        spread = "" if math.isnan(std) else f" ± {std:.2f}"
        is_best = one.seeds == seeds and round(mean, 2) == best[column]
        return Cell(f"{mean:.2f}{spread}", is_best)

    table = []
    for name, one in summaries.items():
        cells = [Cell(name), Cell(str(one.seeds)), score(one, "measure"), Cell(_p(one.p))]
        cells.append(score(one, "ensemble"))
        if published:
            cells.append(Cell(f"{published[name]:.2f}" if name in published else ""))
        table.append(cells)
    return table


def header(study: Study, key: str) -> tuple[str, ...]:
    """The columns' names; published numbers have one where there are any."""
    return HEADER if study.published.get(key) else HEADER[:-1]


def _p(p) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def notes(study: Study, target: str) -> str:
    """What the columns are."""
    return (
        f"Top-1 accuracy after the last epoch, mean ± standard deviation over seeds: of {target}, "
        "the mean of those that the method keeps; and of the ensemble of all peers, teachers too. "
        f"p: two-sided paired t-test over seeds against {study.baseline}, not corrected for the "
        "number of variants. Best means in bold."
    )


def markdown(title: str, head: tuple[str, ...], table: list[list[Cell]], below: str) -> str:
    """The table in Markdown."""
    lines = [f"### {title}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for cells in table:
        lines.append(_line([f"**{cell.text}**" if cell.best else cell.text for cell in cells]))
    return "\n".join([*lines, "", below, ""])


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def latex(title: str, head: tuple[str, ...], table: list[list[Cell]], below: str) -> str:
    """The table in LaTeX, for the package booktabs."""

    def line(cells):
        return " & ".join(cells) + r" \\"

    body = [
        line([rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in cells])
        for cells in table
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(title)}. {_tex(below)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            line(map(_tex, head)),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    return "".join(TEX.get(char, f"\\{char}" if char in "&%_#{}$" else char) for char in text)
