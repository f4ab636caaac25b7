"""Figures, with matplotlib, which is only imported when the first one is drawn."""

import numpy as np

from orc_jax.errors import UserError

# A peer has the same colour everywhere. Any two of the ten differ by at least 0.1 in Oklab for
# readers with normal vision, protanopia or deuteranopia (as simulated by Machado et al. 2009), and
# each has a contrast of at least 3 to its background.
COLOURS = (
    *("#1a57d0", "#c53310", "#339e7a", "#8e6baa", "#cd7911"),
    *("#0b8ffe", "#4c6267", "#4400a5", "#732608", "#28365b"),
)
COLOURS_ON_DARK = (
    *("#659bff", "#ff7900", "#50e6a9", "#cb6fbb", "#ffc227"),
    *("#93d2ff", "#aaa383", "#894ae7", "#bf4903", "#d0067d"),
)
INK = "#808790"  # colour of text that is legible on white and on black
COLUMNS = 5
MAP, OPAQUE = "inferno", 0.6  # colour map of heat, and its opacity over an image


def new(width: float | int, height: float | int):
    """Create an empty figure.

    Args:
      width, height: in inches.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install -e '.[plots]'") from error
    rcParams["text.parse_math"] = False  # names of files and classes may contain $
    return Figure(figsize=(width, height), layout="constrained")


def colour(peer: int) -> str:
    """Return the colour of a peer, by its position in the group."""
    return COLOURS[peer % len(COLOURS)]


def overlays(title: str, pixels: np.ndarray, captions: list[str], heat: list[np.ndarray]):
    """Draw an image, and beside it the image under the heat map of each peer.

    Args:
      title: above the image.
      pixels: uint8 [H, W, channels].
      captions: above the heat maps.
      heat: heat map [H, W] of each peer, 0 to 1.

    Returns:
      The figure.
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
            style = {"alpha": OPAQUE, "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
            overlay = panel.imshow(heat_map, cmap=MAP, **style)
    if heat:
        figure.colorbar(overlay, ax=axes.tolist(), shrink=0.6, aspect=15 * rows, label="heat")
    return figure


def heat_colours(count: int = 9) -> list[str]:
    """Return the colours of heat from 0 to 1, in equal steps, as "#rrggbb"."""
    from matplotlib import colormaps, colors

    return [colors.to_hex(rgba) for rgba in colormaps[MAP](np.linspace(0, 1, count))]


def blend(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend a heat map over an image.

    Args:
      pixels: uint8 [H, W, channels].
      heat: [H, W], 0 to 1.

    Returns:
      uint8 [H, W, 3].
    """
    colours = new(1, 1).add_subplot().imshow(heat, cmap=MAP, vmin=0, vmax=1).to_rgba(heat)
    return (OPAQUE * 255 * colours[..., :3] + (1 - OPAQUE) * pixels).astype(np.uint8)


def surfaces(title: str, captions: list[str], heat: list[np.ndarray], ink: str = "black"):
    """Draw the heat maps of all peers in one plot, as surfaces over the plane of the image.

    Args:
      title: above the plot.
      captions: of the surfaces, for the legend.
      heat: heat map [H, W] of each peer, 0 to 1.
      ink: colour of text and axes.

    Returns:
      The figure.
    """
    figure = new(4.8, 4.4 + 0.2 * len(heat))
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    with rc_context({"grid.color": INK + "60"}):  # takes effect when axes are created
        axes = figure.add_subplot(projection="3d")
    rows, columns = heat[0].shape
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    for peer, heat_map in enumerate(heat):
        axes.plot_surface(x, y, heat_map, color=colour(peer), alpha=0.55, edgecolor="none")
    axes.set(xlabel="x", ylabel="y", zlim=(0, 1))
    axes.set_title(title, color=ink)
    axes.set_zlabel("heat", labelpad=8)
    axes.set_box_aspect(None, zoom=0.82)  # the layout ignores the label of the z axis
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
