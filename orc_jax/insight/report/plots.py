"""Plots as inline SVG, whose colours are the page's: they follow it from light to dark.

Every function returns a `<figure>`. They are drawn at the size of a narrow screen and laid
out side by side on a wide one, so that their text is never scaled far down.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from orc_jax.insight.report.html import figure

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 8, 34
COLOURS = 7  # of the page, --c0 to --c6


def colour(i: int) -> str:
    """The page's colour of a peer or of any other series."""
    return f"var(--c{i % COLOURS})"


def lines(
    title: str,
    epochs: Sequence[float],
    series: dict[str, Sequence[float]],
    colours: Sequence[int],
    unit: str = "",
    dashed: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
) -> str:
    """Curves over the epochs.

    Args:
      title: of the figure.
      epochs: x, of every value.
      series: name → values.
      colours: of every series.
      unit: of the values.
      dashed: names of series.
      bounds: of the y axis; without them, those of the values.
    """
    low, high = bounds or _bounds([value for values in series.values() for value in values])
    x, y = _scales((epochs[0], epochs[-1]), (low, high))
    parts = [_axes(x, y, (epochs[0], epochs[-1]), (low, high), "epoch")]
    for i, (name, values) in zip(colours, series.items(), strict=True):
        points = [
            (f"{x(e):.1f}", f"{y(v):.1f}")
            for e, v in zip(epochs, values, strict=True)
            if np.isfinite(v)
        ]
        if not points:
            continue
        dash = ' stroke-dasharray="5 3"' if name in dashed else ""
        path = "M" + "L".join(map(",".join, points))
        parts.append(f'<path class="line" d="{path}" stroke="{colour(i)}"{dash}/>')
        # The last value is marked, so that a single one shows too.
        parts.append('<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*points[-1], colour(i)))
    swatches = [
        (name, f"border-top: 3px {'dashed' if name in dashed else 'solid'} {colour(i)}")
        for i, name in zip(colours, series, strict=True)
    ]
    return figure(f"{title} ({unit})" if unit else title, _svg(parts, title), _legend(swatches))


def stacked(
    title: str,
    epochs: Sequence[int],
    series: dict[str, Sequence[float]],
    colours: Sequence[int],
) -> str:
    """Shares of a whole, one above the other; each epoch is a step of the area."""
    values = np.array(list(series.values()), float)
    tops = np.cumsum(values, axis=0) / np.maximum(values.sum(axis=0), 1e-12)
    floors = np.vstack([np.zeros(len(epochs)), tops[:-1]])
    # An epoch's share is that of the time since the one before it.
    edges = [2 * epochs[0] - epochs[1] if len(epochs) > 1 else epochs[0] - 1, *epochs]
    x, y = _scales((edges[0], edges[-1]), (0, 100))
    parts = []
    for i, floor, top in zip(colours, floors, tops, strict=True):
        above = _steps(x, y, edges, 100 * top)
        below = _steps(x, y, edges, 100 * floor)[::-1]
        parts.append(f'<path class="area" d="M{"L".join(above + below)}Z" fill="{colour(i)}"/>')
    parts.append(_axes(x, y, (edges[0], edges[-1]), (0, 100), "epoch"))
    swatches = [
        (name, f"border-top: 10px solid {colour(i)}")
        for i, name in zip(colours, series, strict=True)
    ]
    return figure(f"{title} (%)", _svg(parts, title), _legend(swatches))


def _steps(x, y, edges, values):
    return [
        f"{x(edge):.1f},{y(value):.1f}"
        for first, last, value in zip(edges[:-1], edges[1:], values, strict=True)
        for edge in (first, last)
    ]


def reliability(title: str, bins: Sequence, text: str) -> str:
    """Accuracy over confidence, a bar a bin; answers as good as confident lie on the diagonal.

    Args:
      title, text: above and below.
      bins: `findings.Bin`s of equal width. A bar is the more opaque, the more answers it has.
    """
    x, y = _scales((0, 100), (0, 100))
    width, most = 100 / len(bins), max(b.share for b in bins)
    parts = [
        f'<rect class="bar" x="{x(i * width):.1f}" y="{y(100 * b.accuracy):.1f}" '
        f'width="{x(width) - x(0) - 1:.1f}" height="{y(0) - y(100 * b.accuracy):.1f}" '
        f'opacity="{0.25 + 0.75 * b.share / most:.2f}"><title>{100 * b.share:.1f} % of the '
        f"answers: confidence {100 * b.confidence:.1f} %, accuracy {100 * b.accuracy:.1f} %"
        "</title></rect>"
        for i, b in enumerate(bins)
        if b.share
    ]
    parts.append(f'<path class="diagonal" d="M{x(0)},{y(0)}L{x(100)},{y(100)}"/>')
    parts.append(_axes(x, y, (0, 100), (0, 100), "confidence %, and accuracy %"))
    return figure(title, _svg(parts, title), f"<p>{escape(text)}</p>")


def matrix(title: str, counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix: rows are the labels, columns the answers, each row of sum 1.

    The cells of one shade are one path, so that a thousand classes stay a small file; of few
    classes, each cell has its number.
    """
    size, share = len(counts), counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shade = np.ceil(8 * share).astype(int)
    cell = 300 / size
    parts = [f'<g transform="translate(44 8) scale({cell:.4f})">']
    for level in range(1, 9):
        cells = "".join(f"M{j} {i}h1v1h-1z" for i, j in np.argwhere(shade == level))
        if cells:
            parts.append(f'<path d="{cells}" fill="var(--c0)" opacity="{level / 8}"/>')
    parts.append("</g>")
    parts.append('<rect class="frame" x="44" y="8" width="300" height="300"/>')
    if size <= 12:
        for i, j in np.argwhere(counts):
            strong = ' class="on"' if shade[i, j] > 4 else ""
            at = f'x="{44 + (j + 0.5) * cell:.1f}" y="{12 + (i + 0.5) * cell:.1f}"'
            parts.append(f'<text{strong} text-anchor="middle" {at}>{counts[i, j]}</text>')
        for i, name in enumerate(names):
            short, at = escape(name[:6]), (i + 0.5) * cell
            parts.append(f'<text text-anchor="end" x="40" y="{12 + at:.1f}">{short}</text>')
            parts.append(f'<text text-anchor="middle" x="{44 + at:.1f}" y="322">{short}</text>')
    else:
        parts.append('<text text-anchor="end" x="40" y="18">1</text>')
        parts.append(f'<text text-anchor="end" x="40" y="308">{size}</text>')
    parts.append('<text text-anchor="middle" x="194" y="338">answer</text>')
    parts.append(
        '<text text-anchor="middle" transform="translate(12 158) rotate(-90)">label</text>'
    )
    return figure(title, _svg(parts, title, height=344))


def _svg(parts, title, height=HEIGHT):
    label = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _legend(swatches):
    items = (f'<li><i style="{style}"></i>{escape(name)}</li>' for name, style in swatches)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _bounds(values):
    """The range of the values that are finite, with some room."""
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.05 * (high - low) or 0.5
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _scales(horizontal, vertical):
    """(x, y): from values to places in the drawing."""

    def scale(bounds, first, last):
        span = (bounds[1] - bounds[0]) or 1
        return lambda value: first + (value - bounds[0]) / span * (last - first)

    return (
        scale(horizontal, LEFT, WIDTH - RIGHT),
        scale(vertical, HEIGHT - BOTTOM, TOP),
    )


def _axes(x, y, horizontal, vertical, label):
    """Grid lines, numbers at them and the name of the x axis."""
    parts = ['<g class="axes">']
    for value in _ticks(*vertical):
        at = y(value)
        parts.append(f'<path d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text text-anchor="end" x="{LEFT - 5}" y="{at + 4:.1f}">{value:g}</text>')
    for value in _ticks(*horizontal, least=1):
        at = f'x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 15}"'
        parts.append(f'<text text-anchor="middle" {at}>{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text text-anchor="middle" x="{middle}" y="{HEIGHT - 4}">{label}</text></g>')
    return "".join(parts)


def _ticks(low, high, least=0.0):
    """About five round numbers from low to high, no nearer to each other than `least`."""
    raw = max((high - low) / 5, least) or 1
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = np.ceil(low / step - 1e-9)
    count = int(np.floor(high / step + 1e-9) - first) + 1
    return [float(f"{(first + i) * step:.10g}") for i in range(count)]
