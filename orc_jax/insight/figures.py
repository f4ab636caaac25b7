"""Figures by matplotlib, which is imported when the first one is drawn."""

import numpy as np

from orc_jax.errors import UserError

# A peer keeps its colour. Any two of the ten differ by at least 0.1 in Oklab to readers with normal
# vision, protanopia or deuteranopia (simulated as by Machado et al. 2009), and each has a contrast
# of at least 3 to its background.
COLOURS = (
    *("#1a57d0", "#c53310", "#339e7a", "#8e6baa", "#cd7911"),
    *("#0b8ffe", "#4c6267", "#4400a5", "#732608", "#28365b"),
)
COLOURS_ON_DARK = (
    *("#659bff", "#ff7900", "#50e6a9", "#cb6fbb", "#ffc227"),
    *("#93d2ff", "#aaa383", "#894ae7", "#bf4903", "#d0067d"),
)
INK = "#808790"  # of text that is read on white and on black
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
    for panel, text, heat_map in zip(axes, texts, maps, strict=False):
        panel.set_title(text, fontsize=8)
        panel.imshow(picture)
        if heat_map is not None:
            over = {"alpha": OPAQUE, "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
            shown = panel.imshow(heat_map, cmap=MAP, **over)
    if heat:
        figure.colorbar(shown, ax=axes.tolist(), shrink=0.6, aspect=15 * rows, label="heat")
    return figure


def heat_colours(count: int = 9) -> list[str]:
    """The colours of heat from 0 to 1, in equal steps, as "#rrggbb"."""
    from matplotlib import colormaps, colors

    return [colors.to_hex(rgba) for rgba in colormaps[MAP](np.linspace(0, 1, count))]


def blend(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The heat map [H, W] over the image [H, W, channels], as one: uint8 [H, W, 3]."""
    colours = new(1, 1).add_subplot().imshow(heat, cmap=MAP, vmin=0, vmax=1).to_rgba(heat)
    return (OPAQUE * 255 * colours[..., :3] + (1 - OPAQUE) * pixels).astype(np.uint8)


def surfaces(title: str, captions: list[str], heat: list[np.ndarray], ink: str = "black"):
    """The heat maps of all peers as surfaces over the image's plane, in one plot.

    Args:
      title: above the plot.
      captions: of each surface.
      heat: [H, W] of each, 0 to 1.
      ink: colour of text and axes.
    """
    figure = new(4.8, 4.4 + 0.2 * len(heat))
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    with rc_context({"grid.color": INK + "60"}):  # read when the axes are made
        axes = figure.add_subplot(projection="3d")
    rows, columns = heat[0].shape
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    for peer, heat_map in enumerate(heat):
        axes.plot_surface(x, y, heat_map, color=colour(peer), alpha=0.55, edgecolor="none")
    axes.set(xlabel="x", ylabel="y", zlim=(0, 1))
    axes.set_title(title, color=ink)
    axes.set_zlabel("heat", labelpad=8)
    axes.set_box_aspect(None, zoom=0.82)  # the layout has no eye for the z axis's label
    axes.invert_yaxis()  # rows count downwards, as in the image
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0, 0, 0, 0))
        axis.set_tick_params(colors=ink)
        axis.label.set_color(ink)
        axis.line.set_color(ink)
    names = [caption.replace("\n", ", ") for caption in captions]
    figure.legend(
        handles=[Patch(color=colour(i), alpha=0.6, label=name) for i, name in enumerate(names)],
        loc="outside lower center",
        fontsize=10,
        labelcolor=ink,
        frameon=False,
    )
    return figure
