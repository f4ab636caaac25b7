"""`python -m orc_jax.gradcam --workdir=RUN --images=…`: where in an image each peer looks.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) over the output of the last stage: heat maps
side by side, and all of them as surfaces in one plot, as SwitOKD compares teacher and student.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from orc_jax.data import batches
from orc_jax.errors import UserError, unknown
from orc_jax.insight import figures
from orc_jax.insight.inspect import Picture, Subject
from orc_jax.models.network import Network

PREDICTED = -1  # in place of a class: the one that the network itself names


def heat_maps(
    network: Network, variables, images: Float[Array, "B H W channels"], classes: Int[Array, " B"]
) -> Float[Array, "B h w"]:
    """Grad-CAM, L^c = ReLU(Σ_k α_k A_k) with α_k = 1/(h·w) Σ_ij ∂z_c / ∂A_kij.

    A_k is channel k of the last stage's output, z_c the logit of the class asked for.

    Args:
      network: of `orc_jax.models`.
      variables: its {"params", "batch_stats"}; they are not changed.
      images: normalised.
      classes: c of every image.

    Returns:
      The maps at the resolution of the last stage, 0 and above.
    """
    activations = network.apply(variables, images, method="last_stage")

    def total(activations):
        # One gradient for all images: in eval mode a logit depends on its own image alone.
        logits = network.apply(variables, activations, method=_head)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    alpha = jax.grad(total)(activations).mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bk,bhwk->bhw", alpha, activations))


def _head(network, activations):
    return network.head(activations, train=False)[0]


def over_image(maps: Float[Array, "B h w"], height: int, width: int) -> Float[Array, "B H W"]:
    """Maps scaled to the image (bilinear) and each to a maximum of 1; one of zeros stays so."""
    maps = jax.image.resize(maps, (len(maps), height, width), "linear")
    peak = maps.max(axis=(1, 2), keepdims=True)
    return maps / jnp.where(peak > 0, peak, 1)


@flax.struct.dataclass
class View:
    """What a peer makes of images.

    Attributes:
      heat: [B, H, W], 0 to 1, for the class `shown`.
      probabilities: [B, C].
      shown: [B], the class that was asked for, or the predicted one.
    """

    heat: Any
    probabilities: Any
    shown: Any


def view(network: Network, variables, images, classes) -> View:
    """Heat maps and answers of a network; a class can be `PREDICTED`."""
    probabilities = jax.nn.softmax(network.apply(variables, images, train=False))
    shown = jnp.where(classes == PREDICTED, probabilities.argmax(axis=1), classes)
    maps = heat_maps(network, variables, images, shown)
    return View(over_image(maps, *images.shape[1:3]), probabilities, shown)


def classes_of(names: list[str], subject: Subject, shown: list[Picture]) -> list[int]:
    """The class whose evidence is asked for in every image.

    Args:
      names: none for what each peer predicts; "true" for the labels; one class for all images,
        or one for each.

    Raises:
      UserError: there is no such class, a label is not known, or the numbers differ.
    """
    if not names:
        return [PREDICTED] * len(shown)
    if names == ["true"]:
        for picture in shown:
            if picture.label is None:
                raise UserError(f"--classes=true: of {picture.name} no label is known")
        return [picture.label for picture in shown]
    for name in names:
        if name not in subject.class_names:
            raise unknown("class", name, subject.class_names)
    if len(names) not in (1, len(shown)):
        raise UserError(f"--classes has {len(names)} names for {len(shown)} images")
    indices = [subject.class_names.index(name) for name in names]
    return indices * len(shown) if len(names) == 1 else indices


def viewer(subject: Subject) -> Callable[[Picture, int], list[View]]:
    """(image, class as in `view`) → what every peer makes of it; compiled once a network."""
    compiled = {}
    for peer in subject.peers:
        compiled.setdefault(id(peer.network), jax.jit(partial(view, peer.network)))

    def views(picture, label):
        images, classes = (
            batches.normalise(subject.images, picture.pixels[None]),
            jnp.array([label]),
        )
        return [
            jax.device_get(compiled[id(peer.network)](peer.variables, images, classes))
            for peer in subject.peers
        ]

    return views


def captions(subject: Subject, seen: list[View]) -> list[str]:
    """Of every peer: what it is, its answer and, if the map is of another class, that one."""
    found = []
    for peer, one in zip(subject.peers, seen, strict=True):
        answer, shown = int(one.probabilities[0].argmax()), int(one.shown[0])
        lines = [
            f"{subject.class_names[c]}: {100 * one.probabilities[0, c]:.1f} %"
            for c in (answer, shown)
        ]
        what = "" if answer == shown else f"\nheat of {lines[1]}"
        found.append(f"{peer.title}\n{lines[0]}{what}")
    return found


def draw(subject: Subject, shown: list[Picture], classes: list[int], out: Path) -> list[Path]:
    """Writes two PNGs an image, heat maps and surfaces; returns their paths."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    written, views = [], viewer(subject)
    for i, (picture, label) in enumerate(zip(shown, classes, strict=True)):
        seen = views(picture, label)
        heat = [one.heat[0] for one in seen]
        name = picture.name
        if picture.label is not None:
            name += f"\nlabel {subject.class_names[picture.label]}"
        texts = captions(subject, seen)
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
