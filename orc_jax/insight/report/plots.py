"""Compute what the plots show; the template that a plot names draws it as inline SVG.

Plots are drawn at the size of a narrow screen and laid out side by side on a wide one, so that
their text is never scaled far down.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from orc_jax.insight.figures import COLOURS

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 8, 34  # margins around the axes
SHADES = 8  # of a confusion matrix
NUMBERED = 12  # classes, up to which a matrix shows its numbers and their names


class Scale(NamedTuple):
    """A linear axis: call it with a value to get the place in the drawing.

    Attributes:
      low, high: the values at its ends.
      start, end: the places of its ends.
      least: the smallest step between two ticks.
    """

    low: float
    high: float
    start: float
    end: float
    least: float = 0.0

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return float(self.start + share * (self.end - self.start))

    @property
    def ticks(self) -> list[float]:
        """About five round numbers."""
        raw = max((self.high - self.low) / 5, self.least) or 1
        power = 10.0 ** np.floor(np.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
        first = np.ceil(self.low / step - 1e-9)
        count = int(np.floor(self.high / step + 1e-9) - first) + 1
        return [float(f"{(first + i) * step:.10g}") for i in range(count)]


class Series(NamedTuple):
    """A line or an area.

    Attributes:
      name: in the legend.
      colour: number of the page's colour.
      points: places (x, y) in the drawing.
      dashed: whether the line is.
    """

    name: str
    colour: int
    points: list[tuple[float, float]]
    dashed: bool = False


class Plot(NamedTuple):
    """A plot over two axes.

    Attributes:
      template: the file that draws it.
      title: above it.
      x, y: the axes.
      x_label: the name of the x axis.
      content: the marks, as the template needs them.
      unit: of y, for the title.
      text: below it.
    """

    template: str
    title: str
    x: Scale
    y: Scale
    x_label: str
    content: list[Any]
    unit: str = ""
    text: str = ""

    width, height = WIDTH, HEIGHT


def lines(
    title: str,
    epochs: Sequence[float],
    series: dict[str, Sequence[float]],
    colours: Sequence[int],
    unit: str = "",
    dashed: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
) -> Plot:
    """Plot curves over the epochs; values that are not finite are left out.

    Args:
      title: of the figure.
      epochs: x, of every value.
      series: name → values.
      colours: of every series.
      unit: of the values.
      dashed: names of series.
      bounds: of the y axis; without them, those of the values.
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
    series: dict[str, Sequence[float]],
    colours: Sequence[int],
) -> Plot:
    """Plot shares of a whole, one above the other; each epoch is a step of the area."""
    values = np.array(list(series.values()), float)
    tops = 100 * np.cumsum(values, axis=0) / np.maximum(values.sum(axis=0), 1e-12)
    floors = np.vstack([np.zeros(len(epochs)), tops[:-1]])
    # An epoch's share is that of the time since the one before it.
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
    """Plot accuracy over confidence; answers as good as confident lie on the diagonal.

    Args:
      title, text: above and below.
      bins: `findings.Bin`s of equal width. A bar is the more opaque, the more answers it has.
    """
    x, y = _axes((0, 100), (0, 100))
    width, most = 100 / len(bins), max(b.share for b in bins)
    bars = [
        {
            "x": x(i * width),
            "y": y(100 * b.accuracy),
            "width": x(width) - x(0) - 1,
            "height": y(0) - y(100 * b.accuracy),
            "opacity": 0.25 + 0.75 * b.share / most,
            "bin": b,
        }
        for i, b in enumerate(bins)
        if b.share
    ]
    label = "confidence %, and accuracy %"
    return Plot("reliability.svg", title, x, y, label, bars, text=text)


class Matrix(NamedTuple):
    """A confusion matrix; rows are the labels, columns the answers.

    Attributes:
      title: above it.
      size: C, the number of classes.
      shades: (opacity, cells as (row, column)) of every shade.
      numbers: (row, column, count, whether the shade is strong), for few classes.
      names: of the classes, cut short, for few classes.
    """

    title: str
    size: int
    shades: list[tuple[float, list[list[int]]]]
    numbers: list[tuple[int, int, int, bool]]
    names: list[str]

    template, unit, text = "matrix.svg", "", ""


def matrix(title: str, counts: np.ndarray, names: Sequence[str]) -> Matrix:
    """Plot a confusion matrix, each row of sum 1.

    The cells of one shade are one path, so that a thousand classes stay a small file; of few
    classes, each cell has its number.

    Args:
      title: of the figure.
      counts: [C, C], how often an image of class i (row) was called j (column).
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
    """The axes for values of these ranges; the x axis has no ticks between whole numbers."""
    x = Scale(*horizontal, LEFT, WIDTH - RIGHT, least=1)
    return x, Scale(*vertical, HEIGHT - BOTTOM, TOP)


def _bounds(values):
    """The range of the values that are finite, with some room."""
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.05 * (high - low) or 0.5
    return (max(0.0, low - room) if low >= 0 else low - room), high + room
