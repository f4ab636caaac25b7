"""Figures by matplotlib, which is imported when the first one is drawn."""

import numpy as np

from orc_jax.errors import UserError

# Okabe & Ito (2008): told apart by colour-blind readers too. A peer keeps its colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
COLUMNS = 5
MAP, OPAQUE = "inferno", 0.6  # colours of heat, and how much they cover of the image


def new(width: float, height: float):
    """An empty figure of so many inches.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install -e '.[plots]'") from error
    rcParams["text.parse_math"] = False  # files and classes can have a $ in their names
    return Figure(figsize=(width, height), layout="constrained")


def colour(peer: int) -> str:
    """The colour of a peer, by its position."""
    return COLOURS[peer % len(COLOURS)]


def overlays(title: str, pixels: np.ndarray, captions: list[str], heat: list[np.ndarray]):
    """An image, then beside it with each peer's heat map over it.

    Args:
      title: above the image.
      pixels: [H, W, channels] uint8.
      captions: above each peer's map.
      heat: [H, W] of each, 0 to 1.
    """
    columns = min(COLUMNS, 1 + len(heat))
    rows = -(-(1 + len(heat)) // columns)
    figure = new(2.2 * columns, 2.7 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in axes:
        panel.set_axis_off()
    picture = pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)
    texts, maps = [title, *captions], [None, *heat]
    for panel, text, one in zip(axes, texts, maps, strict=False):
        panel.set_title(text, fontsize=8)
        panel.imshow(picture)
        if one is not None:
            panel.imshow(one, cmap=MAP, alpha=OPAQUE, vmin=0, vmax=1, interpolation="bilinear")
    return figure


def blend(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The heat map [H, W] over the image [H, W, channels], as one: uint8 [H, W, 3]."""
    colours = new(1, 1).add_subplot().imshow(heat, cmap=MAP, vmin=0, vmax=1).to_rgba(heat)
    return (OPAQUE * 255 * colours[..., :3] + (1 - OPAQUE) * pixels).astype(np.uint8)


def surfaces(title: str, captions: list[str], heat: list[np.ndarray]):
    """The heat maps of all peers as surfaces over the image's plane, in one plot.

    Args:
      title: above the plot.
      captions: of each surface.
      heat: [H, W] of each, 0 to 1.
    """
    figure = new(4.8, 4.4 + 0.2 * len(heat))
    axes = figure.add_subplot(projection="3d")
    rows, columns = heat[0].shape
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    for peer, one in enumerate(heat):
        axes.plot_surface(x, y, one, color=colour(peer), alpha=0.45, edgecolor="none")
    axes.set(xlabel="x", ylabel="y", zlim=(0, 1), title=title)
    axes.set_zlabel("heat", labelpad=8)
    axes.set_box_aspect(None, zoom=0.82)  # the layout has no eye for the z axis's label
    axes.invert_yaxis()  # rows count downwards, as in the image
    from matplotlib.patches import Patch

    names = [caption.replace("\n", ", ") for caption in captions]
    figure.legend(
        handles=[Patch(color=colour(i), alpha=0.6, label=name) for i, name in enumerate(names)],
        loc="outside lower center",
        fontsize=10,
    )
    return figure
