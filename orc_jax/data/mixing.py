"""Mixtures of two images and their labels: mixup, CutMix, and label smoothing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Mixture(NamedTuple):
    """A mixture of every image of a batch with another one, its partner.

    Attributes:
      partner: position of the partner in the batch.
      mask: weight of the image itself in each pixel of the mixed image, 0 to 1.
    """

    partner: Int[Array, " B"]
    mask: Float[Array, "H W"]

    @property
    def lam(self):
        """λ, the weight of the image itself in the mixed image, []."""
        return self.mask.mean()


def draw(key, data, batch_size: int, size: tuple[int, int]) -> Mixture | None:
    """Draw the mixture that the config asks for, with one λ ~ Beta(α, α) for the whole batch.

    mixup (Zhang et al. 2018, arXiv 1710.09412) computes λ x + (1−λ) x_partner. CutMix (Yun et al.
    2019, arXiv 1905.04899) replaces a box of area 1−λ, clipped at the border, by the partner's.
    If both are set, each is applied to half of the batches.

    Args:
      key: PRNG key.
      data: `config.data`, whose `mixup` and `cutmix` are the α of the two methods, or 0.
      batch_size: B.
      size: height and width of the images.

    Returns:
      The mixture; None if neither method is set.
    """
    if not (data.mixup or data.cutmix):
        return None
    partner_key, lam_key, box_key, method_key = jax.random.split(key, 4)
    partner = jax.random.permutation(partner_key, batch_size)
    if not data.cutmix:
        return Mixture(partner, _blend(lam_key, data.mixup, size))
    mask = _box(lam_key, box_key, data.cutmix, size)
    if data.mixup:
        blend = _blend(lam_key, data.mixup, size)
        mask = jnp.where(jax.random.bernoulli(method_key), blend, mask)
    return Mixture(partner, mask)


def draw_lambda(key, alpha: float):
    """Draw λ ~ Beta(α, α), [].

    For α = 1 this is the uniform distribution. It is drawn as such because the sampler of the beta
    distribution is a loop, for which a GPU waits for the host in every step.
    """
    return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def _blend(key, alpha, size):
    """Draw the mask of mixup."""
    return jnp.full(size, draw_lambda(key, alpha))


def _box(lam_key, box_key, alpha, size):
    """Draw the mask of CutMix: 0 inside of a box around a random pixel, 1 outside."""
    side = jnp.sqrt(1 - draw_lambda(lam_key, alpha))
    outside = []
    for n, key in zip(size, jax.random.split(box_key), strict=True):
        centre, half = jax.random.randint(key, (), 0, n), (side * n).astype(int) // 2
        index = jnp.arange(n)
        outside.append((index < centre - half) | (index >= centre + half))
    return (outside[0][:, None] | outside[1][None, :]).astype(jnp.float32)


def labels_of(labels: Int[Array, " B"], mixture: Mixture | None, smoothing: float, classes: int):
    """Compute the labels of mixed images, and smooth them.

    Args:
      labels: class indices of the images.
      mixture: mixture of the images, or None.
      smoothing: ε of the smoothed labels (1−ε) y + ε/C (Szegedy et al. 2016, arXiv 1512.00567).
      classes: number of classes C.

    Returns:
      (labels [B] of the image with the greater weight, soft labels [B, C]). The soft labels are
      None if the images are not mixed and the labels are not smoothed.
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
