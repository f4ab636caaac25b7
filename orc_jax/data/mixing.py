"""Images mixed of two, and labels that say so: mixup, CutMix, label smoothing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Mixture(NamedTuple):
    """How every image of a batch is mixed with another one.

    Attributes:
      partner: position in the batch of the other image.
      mask: how much of each pixel is the image itself, 0 to 1.
    """

    partner: Int[Array, " B"]
    mask: Float[Array, "H W"]

    @property
    def lam(self):
        """λ, how much of the mixed image is the image itself."""
        return self.mask.mean()


def draw(key, data, batch_size: int, size: tuple[int, int]) -> Mixture | None:
    """A mixture as the settings ask for it, the same λ for a batch; None without one.

    mixup (arXiv 1710.09412): λ x_b + (1−λ) x_partner, λ ~ Beta(α, α). CutMix (arXiv 1905.04899):
    a box of area 1−λ, cut at the border, is the partner's. With both, half of the batches each.

    Args:
      data: `config.data`; its `mixup` and `cutmix` are the α.
      size: height and width of the images.
    """
    if not (data.mixup or data.cutmix):
        return None
    partner_key, share_key, box_key, which_key = jax.random.split(key, 4)
    partner = jax.random.permutation(partner_key, batch_size)
    if not data.cutmix:
        return Mixture(partner, _blend(share_key, data.mixup, size))
    mask = _box(share_key, box_key, data.cutmix, size)
    if data.mixup:
        blend = _blend(share_key, data.mixup, size)
        mask = jnp.where(jax.random.bernoulli(which_key), blend, mask)
    return Mixture(partner, mask)


def _blend(key, alpha, size):
    return jnp.full(size, jax.random.beta(key, alpha, alpha))


def _box(share_key, box_key, alpha, size):
    """1 outside of a box around a random pixel, 0 inside."""
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    outside = []
    for n, key in zip(size, jax.random.split(box_key), strict=True):
        centre, half = jax.random.randint(key, (), 0, n), (side * n).astype(int) // 2
        at = jnp.arange(n)
        outside.append((at < centre - half) | (at >= centre + half))
    return (outside[0][:, None] | outside[1][None, :]).astype(jnp.float32)


def labels_of(labels: Int[Array, " B"], mixture: Mixture | None, smoothing: float, classes: int):
    """(the label of the greater part, soft labels [B, C] or None where labels are as they were).

    Args:
      smoothing: ε of (1−ε) y + ε/C (Szegedy et al. 2016, arXiv 1512.00567).
      classes: C.
    """
    if mixture is None and not smoothing:
        return labels, None
    soft = jax.nn.one_hot(labels, classes)
    soft = (1 - smoothing) * soft + smoothing / classes
    if mixture is not None:
        lam, partner = mixture.lam, mixture.partner
        soft = lam * soft + (1 - lam) * soft[partner]
        labels = jnp.where(lam < 0.5, labels[partner], labels)
    return labels, soft
