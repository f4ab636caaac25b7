"""The table of a study, whose cells become Markdown, LaTeX and the live table."""

import math
from typing import NamedTuple

from experiments.results import Summary
from experiments.study import Study

HEADER = ("variant", "seeds", "top-1 %", "p", "ensemble %", "published %")
# Characters that LaTeX writes in another way than with a backslash before them.
TEX = {
    **{"±": r"$\pm$", "<": "$<$", ">": "$>$", "–": "--", "×": r"$\times$"},
    **{"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"},
}


class Cell(NamedTuple):
    """A cell's text, and whether it is the best of its column."""

    text: str
    best: bool = False


def rows(summaries: dict[str, Summary], published: dict[str, float]) -> list[list[Cell]]:
    """Return a row of cells for every variant that has a result, in the columns of `header`.

    Args:
      summaries: the variants by name, see `results.summarise`.
      published: see `study.published`.
    """
    # Only variants with all seeds can be the best: the missing seeds may be the harder ones.
    seeds = max((summary.seeds for summary in summaries.values()), default=0)
    complete = [summary for summary in summaries.values() if summary.seeds == seeds]
    best = {
        column: max((round(getattr(summary, column)[0], 2) for summary in complete), default=0)
        for column in ("measure", "ensemble")
    }

    def score(summary, column):
        mean, std = getattr(summary, column)
        spread = "" if math.isnan(std) else f" ± {std:.2f}"
        is_best = summary.seeds == seeds and round(mean, 2) == best[column]
        return Cell(f"{mean:.2f}{spread}", is_best)

    table = []
    for name, summary in summaries.items():
        cells = [
            Cell(name),
            Cell(str(summary.seeds)),
            score(summary, "measure"),
            Cell(_p(summary.p)),
            score(summary, "ensemble"),
        ]
        if published:
            cells.append(Cell(f"{published[name]:.2f}" if name in published else ""))
        table.append(cells)
    return table


def header(published: dict[str, float]) -> tuple[str, ...]:
    """Return the names of the columns, with one for published numbers if there are any."""
    return HEADER if published else HEADER[:-1]


def _p(p) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def notes(study: Study, target: str, published: dict[str, float]) -> str:
    """Return the text below the table, which explains the columns."""
    text = (
        f"Top-1 accuracy after the last epoch, mean ± standard deviation over seeds: of {target}, "
        "the mean of those that the method keeps; and of the ensemble of all peers, teachers too. "
        f"p: two-sided paired t-test over seeds against {study.baseline}, not corrected for the "
        "number of variants. Best means in bold."
    )
    return f"{text} {study.not_public}".strip() if published else text


def markdown(title: str, head: tuple[str, ...], table: list[list[Cell]], below: str) -> str:
    """Return the table in Markdown."""
    lines = [f"### {title}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for cells in table:
        lines.append(_line([f"**{cell.text}**" if cell.best else cell.text for cell in cells]))
    return "\n".join([*lines, "", below, ""])


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def latex(title: str, head: tuple[str, ...], table: list[list[Cell]], below: str) -> str:
    """Return the table in LaTeX, for the package booktabs."""

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
    """Escape a text for LaTeX."""
    return "".join(TEX.get(char, f"\\{char}" if char in "&%_#{}$" else char) for char in text)
