"""Compute the plots; templates draw them as inline SVG.

Plots are as wide as a narrow screen, and stand side by side on a wide one, so that their text is
never scaled down much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from orc_jax.insight.figures import COLOURS

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 8, 34  # margins around the axes
SHADES = 8  # in a confusion matrix
NUMBERED = 12  # up to so many classes, a confusion matrix shows its counts and the classes' names

# The checks of annotated types in the tests do not take an int for a float.
Number = float | int


class Scale(NamedTuple):
    """A linear axis, a function from values to places in the drawing.

    Attributes:
      low, high: values at its ends.
      start, end: places of its ends.
      least: smallest step between two ticks.
    """

    low: Number
    high: Number
    start: Number
    end: Number
    least: Number = 0

    def __call__(self, value: Number) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return float(self.start + share * (self.end - self.start))

    @property
    def ticks(self) -> list[float]:
        """About five round numbers from one end to the other."""
        raw = max((self.high - self.low) / 5, self.least) or 1
        power = 10.0 ** np.floor(np.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
        first = np.ceil(self.low / step - 1e-9)
        count = int(np.floor(self.high / step + 1e-9) - first) + 1
        return [float(f"{(first + i) * step:.10g}") for i in range(count)]


class Series(NamedTuple):
    """A line or an area.

    Attributes:
      name: for the legend.
      colour: index into the page's colours.
      points: places (x, y) in the drawing.
      dashed: whether the line is dashed.
    """

    name: str
    colour: int
    points: list[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot over two axes.

    Attributes:
      template: file that draws the plot.
      title: above the plot.
      x, y: axes.
      x_label: name of the x axis.
      content: marks, as the template expects them.
      unit: of y, for the title.
      text: below the plot.
    """

    template: str
    title: str
    x: Scale
    y: Scale
    x_label: str
    content: list[Any]
    unit: str = ""
    text: str = ""

    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT


def lines(
    title: str,
    epochs: Sequence[Number],
    series: Mapping[str, Sequence[Number]],
    colours: Sequence[int],
    unit: str = "",
    dashed: Sequence[str] = (),
    bounds: tuple[Number, Number] | None = None,
) -> Plot:
    """Plot curves over the epochs; values that are not finite are left out.

    Args:
      title: above the plot.
      epochs: x of each value.
      series: name → values.
      colours: of each series, see `Series`.
      unit: of the values.
      dashed: names of the series whose lines are dashed.
      bounds: of the y axis; by default those of the values, with a margin.
    """
    x, y = _axes(
        (epochs[0], epochs[-1]),
        bounds or _bounds([value for values in series.values() for value in values]),
    )
    curves = []
    for i, (name, values) in zip(colours, series.items(), strict=True):
        pairs = zip(epochs, values, strict=True)
        points = [(x(epoch), y(value)) for epoch, value in pairs if np.isfinite(value)]
        curves.append(Series(name, i % len(COLOURS), points, name in dashed))
    return Plot("lines.svg", title, x, y, "epoch", curves, unit)


def stacked(
    title: str,
    epochs: Sequence[int],
    series: Mapping[str, Sequence[Number]],
    colours: Sequence[int],
) -> Plot:
    """Plot shares of a whole as stacked areas, each with one step per epoch.

    Args:
      title: above the plot.
      epochs: of each value.
      series: name → values, which are divided by their sum over the series.
      colours: of each series, see `Series`.
    """
    values = np.array(list(series.values()), float)
    tops = 100 * np.cumsum(values, axis=0) / np.maximum(values.sum(axis=0), 1e-12)
    floors = np.vstack([np.zeros(len(epochs)), tops[:-1]])
    # The share of an epoch covers the time since the epoch before it.
    edges = [2 * epochs[0] - epochs[1] if len(epochs) > 1 else epochs[0] - 1, *epochs]
    x, y = _axes((edges[0], edges[-1]), (0, 100))

    def steps(values):
        return [
            (x(edge), y(value))
            for first, last, value in zip(edges[:-1], edges[1:], values, strict=True)
            for edge in (first, last)
        ]

    areas = [
        Series(name, i % len(COLOURS), steps(top) + steps(floor)[::-1])
        for name, i, floor, top in zip(series, colours, floors, tops, strict=True)
    ]
    return Plot("stacked.svg", title, x, y, "epoch", areas, "%")


def reliability(title: str, bins: Sequence, text: str) -> Plot:
    """Plot accuracy over confidence; where they are equal, bars end on the diagonal.

    The more predictions there are in a bin, the more opaque its bar.

    Args:
      title, text: above and below the plot.
      bins: `findings.Bin`s of equal width.
    """
    x, y = _axes((0, 100), (0, 100))
    width, largest_share = 100 / len(bins), max(b.share for b in bins)
    bars = [
        {
            "x": x(i * width),
            "y": y(100 * b.accuracy),
            "width": x(width) - x(0) - 1,
            "height": y(0) - y(100 * b.accuracy),
            "opacity": 0.25 + 0.75 * b.share / largest_share,
            "bin": b,
        }
        for i, b in enumerate(bins)
        if b.share
    ]
    label = "confidence %, and accuracy %"
    return Plot("reliability.svg", title, x, y, label, bars, text=text)


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix; rows are labels, columns are predicted classes.

    Attributes:
      title: above the matrix.
      size: number of classes C.
      shades: (opacity, cells as [row, column]) of each shade.
      numbers: (row, column, count, whether the shade is strong) of each cell that is not 0; empty
        for many classes.
      names: of the classes, abbreviated; empty for many classes.
    """

    title: str
    size: int
    shades: list[tuple[float, list[list[int]]]]
    numbers: list[tuple[int, int, int, bool]]
    names: list[str]

    template: ClassVar[str] = "matrix.svg"
    unit: ClassVar[str] = ""
    text: ClassVar[str] = ""


def matrix(title: str, counts: np.ndarray, names: Sequence[str]) -> Matrix:
    """Plot a confusion matrix, with shades by the share of each row.

    All cells of one shade become one path of the SVG, which keeps the file small even for a
    thousand classes.

    Args:
      title: above the matrix.
      counts: [C, C], see `findings.confusion`.
      names: [C], of the classes.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shade = np.ceil(SHADES * share).astype(int)
    shades = [(i / SHADES, np.argwhere(shade == i).tolist()) for i in range(1, SHADES + 1)]
    few = len(counts) <= NUMBERED
    cells = np.argwhere(counts).tolist() if few else []
    return Matrix(
        title,
        len(counts),
        [(opacity, places) for opacity, places in shades if places],
        [(i, j, int(counts[i, j]), bool(shade[i, j] > SHADES // 2)) for i, j in cells],
        [name[:6] for name in names] if few else [],
    )


def _axes(horizontal, vertical) -> tuple[Scale, Scale]:
    """Make the axes for these ranges (low, high); the x axis has ticks at whole numbers only."""
    (left, right), (low, high) = horizontal, vertical
    x = Scale(left, right, LEFT, WIDTH - RIGHT, least=1)
    return x, Scale(low, high, HEIGHT - BOTTOM, TOP)


def _bounds(values):
    """Return the range of the finite values, with a margin."""
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.5
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
