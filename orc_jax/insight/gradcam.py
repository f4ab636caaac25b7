"""Grad-CAM: where in an image each peer finds the evidence for a class.

The heat maps (Selvaraju et al. 2017, arXiv 1610.02391) are of the last stage's output. They are
drawn side by side, and as surfaces in one plot, as SwitOKD compares teacher and student.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from orc_jax import compiler
from orc_jax.data import batches
from orc_jax.errors import UserError, unknown
from orc_jax.insight import figures
from orc_jax.insight.inspect import Picture, Subject
from orc_jax.models.network import Network

PREDICTED = -1  # stands for the class that the network predicts


def heat_maps(
    network: Network, variables, images: Float[Array, "B H W channels"], classes: Int[Array, " B"]
) -> Float[Array, "B h w"]:
    """Compute Grad-CAM, L^c = ReLU(Σ_k α_k A_k) with α_k = 1/(h·w) Σ_ij ∂z_c / ∂A_kij.

    A_k is channel k of the last stage's output, z_c the logit of class c.

    Args:
      network: see `orc_jax.models`.
      variables: {"params", "batch_stats"} of the network.
      images: normalised.
      classes: c for each image.

    Returns:
      Heat maps at the resolution h × w of the last stage, at least 0.
    """
    activations = network.apply(variables, images, method="last_stage")

    def total(activations):
        # In eval mode a logit depends only on its own image: one gradient serves all images.
        logits = network.apply(variables, activations, method=_head)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    alpha = jax.grad(total)(activations).mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bk,bhwk->bhw", alpha, activations))


def _head(network, activations):
    return network.head(activations, train=False)[0]


def over_image(maps: Float[Array, "B h w"], height: int, width: int) -> Float[Array, "B H W"]:
    """Scale heat maps to the size of the image (bilinear), and each to a maximum of 1.

    Args:
      maps: see `heat_maps`.
      height, width: of the image in pixels.

    Returns:
      The maps, 0 to 1; a map of zeros stays as it is.
    """
    maps = jax.image.resize(maps, (len(maps), height, width), "linear")
    peak = maps.max(axis=(1, 2), keepdims=True)
    return maps / jnp.where(peak > 0, peak, 1)


@flax.struct.dataclass
class View:
    """Heat maps and predictions of a peer for B images.

    Attributes:
      heat: [B, H, W], 0 to 1, for the class `shown`.
      probabilities: [B, C].
      shown: [B], the class that was asked for, or the predicted one.
    """

    heat: Any
    probabilities: Any
    shown: Any


def view(network: Network, variables, images, classes) -> View:
    """Compute the heat maps and predictions of a network.

    Args:
      network, variables, images: see `heat_maps`.
      classes: class for each image, or `PREDICTED`.
    """
    logits: Any = network.apply(variables, images, train=False)
    probabilities = jax.nn.softmax(logits)
    shown = jnp.where(classes == PREDICTED, probabilities.argmax(axis=1), classes)
    maps = heat_maps(network, variables, images, shown)
    return View(over_image(maps, *images.shape[1:3]), probabilities, shown)


def classes_of(names: list[str], subject: Subject, shown: list[Picture]) -> list[int]:
    """Find the class whose evidence is shown, for each image.

    Args:
      names: empty for the class that each peer predicts, ["true"] for the labels, or one class for
        all images, or one for each.
      subject: networks, with the names of their classes.
      shown: images.

    Raises:
      UserError: a class is unknown, the label of an image is unknown, or there are neither one
        class nor as many as images.
    """
    if not names:
        return [PREDICTED] * len(shown)
    if names == ["true"]:
        labels = []
        for picture in shown:
            if picture.label is None:
                raise UserError(f"--classes=true: the label of {picture.name} is not known")
            labels.append(picture.label)
        return labels
    for name in names:
        if name not in subject.class_names:
            raise unknown("class", name, subject.class_names)
    if len(names) not in (1, len(shown)):
        raise UserError(f"--classes has {len(names)} names for {len(shown)} images")
    indices = [subject.class_names.index(name) for name in names]
    return indices * len(shown) if len(names) == 1 else indices


def viewer(subject: Subject) -> Callable[[Picture, int], list[View]]:
    """Return a function (image, class as in `view`) → the `View` of every peer.

    Peers with equal networks share one compiled program.
    """
    # Equal networks are the same object, and a Flax module need not be hashable.
    networks = {id(peer.network): peer.network for peer in subject.peers}
    compiled = {key: compiler.jit(partial(view, network)) for key, network in networks.items()}

    def views(picture, label):
        classes = jnp.array([label])
        return [
            jax.device_get(
                compiled[id(peer.network)](
                    peer.variables, batches.normalise(peer.images, picture.pixels[None]), classes
                )
            )
            for peer in subject.peers
        ]

    return views


def captions(subject: Subject, views: list[View]) -> list[str]:
    """Caption the heat map of each peer: title, predicted class, and the class shown if it differs.

    Args:
      subject: the peers.
      views: of each peer, for one image.
    """
    texts = []
    for peer, its_view in zip(subject.peers, views, strict=True):
        probabilities, shown = its_view.probabilities[0], int(its_view.shown[0])
        predicted = int(probabilities.argmax())
        text = f"{peer.title}\n{_with_probability(subject, probabilities, predicted)}"
        if shown != predicted:
            text += f"\nheat of {_with_probability(subject, probabilities, shown)}"
        texts.append(text)
    return texts


def _with_probability(subject, probabilities, c):
    return f"{subject.class_names[c]}: {100 * probabilities[c]:.1f} %"


def draw(subject: Subject, shown: list[Picture], classes: list[int], out: Path) -> list[Path]:
    """Write two PNGs for each image, heat maps and surfaces.

    Args:
      subject: networks whose heat maps are drawn.
      shown: images.
      classes: class for each image, or `PREDICTED`.
      out: directory to write.

    Returns:
      The paths of the PNGs.

    Raises:
      UserError: they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    written, views_of = [], viewer(subject)
    for i, (picture, label) in enumerate(zip(shown, classes, strict=True)):
        views = views_of(picture, label)
        heat = [peer.heat[0] for peer in views]
        name = picture.name
        if picture.label is not None:
            name += f"\nlabel {subject.class_names[picture.label]}"
        texts = captions(subject, views)
        for suffix, figure in (
            ("", figures.overlays(name, picture.pixels, texts, heat)),
            ("-surfaces", figures.surfaces(name.replace("\n", ", "), texts, heat)),
        ):
            written.append(out / f"{i}-{picture.name}{suffix}.png")
            try:
                figure.savefig(written[-1], dpi=120)
            except OSError as error:
                raise UserError(f"cannot write {written[-1]}: {error.strerror}") from error
    return written
