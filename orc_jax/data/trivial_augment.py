"""TrivialAugment (Müller & Hutter 2021, arXiv 2103.10158) with its wide space, on the device.

Every image is changed in one way of its own, with a strength of its own. The results are within
one or two levels of those of Pillow. All changes are computed for all images, and `kind` selects
one for each image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KINDS = (
    "identity",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
LEVELS = 30  # largest level; strengths are level / LEVELS


class Change(NamedTuple):
    """The change of every image of a batch.

    Attributes:
      kind: index of the change in `KINDS`.
      strength: strength relative to the largest of this kind, −1 to 1.
    """

    kind: Int[Array, "*P B"]
    strength: Float[Array, "*P B"]


def draw(key, shape: tuple[int, ...]) -> Change:
    """Draw a kind, one of 31 strengths and a sign for every image, uniformly.

    Args:
      key: PRNG key.
      shape: (B,), or (P, B).
    """
    kind_key, level_key, sign_key = jax.random.split(key, 3)
    strength = jax.random.randint(level_key, shape, 0, LEVELS + 1) / LEVELS
    sign = jnp.where(jax.random.bernoulli(sign_key, 0.5, shape), 1, -1)
    return Change(jax.random.randint(kind_key, shape, 0, len(KINDS)), sign * strength)


def grey(images):
    """Compute the brightness of each pixel, or the mean of its channels if they are not RGB.

    Args:
      images: [..., H, W, channels].

    Returns:
      [..., H, W, 1].
    """
    channels = images.shape[-1]
    weights = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    return (images @ jnp.array(weights))[..., None]


def apply(images: Float[Array, "*P B H W channels"], change: Change):
    """Change every image.

    Args:
      images: images with levels from 0 to 255.
      change: change of every image.

    Returns:
      Images of the same shape, with levels from 0 to 255.
    """
    shape = images.shape
    images = _moved(images.reshape(-1, *shape[-3:]), *(x.reshape(-1) for x in change))
    kind, strength = (x.reshape(-1, 1, 1, 1) for x in change)

    def where(name, new, old):
        return jnp.where(kind == KINDS.index(name), new, old)

    brightness = grey(images)
    # Four changes scale the image's distance to a base image by 1 ± 0.99.
    base = where("brightness", 0, images)
    base = where("contrast", brightness.mean(axis=(1, 2, 3), keepdims=True), base)
    base = where("saturation", brightness, base)
    base = where("sharpness", _smooth(images), base)
    images = (base + (images - base) * (1 + 0.99 * strength)).clip(0, 255)

    strength = jnp.abs(strength)
    step = 2 ** jnp.round(6 * strength)
    images = where("posterize", jnp.floor(images / step) * step, images)
    threshold = 256 * (1 - strength)
    images = where("solarize", jnp.where(images < threshold, images, 255 - images), images)
    low, high = (f(images, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    scaled = (images - low) * 255 / jnp.where(high > low, high - low, 255)
    images = where("autocontrast", jnp.where(high > low, scaled, images), images)
    return where("equalize", _equalized(images), images).reshape(shape)


def _moved(images, kind, strength):
    """Rotate, shear and translate by nearest-neighbour lookup; pixels from outside are black."""
    _, height, width, _ = images.shape

    def amount(name, largest):
        return jnp.where(kind == KINDS.index(name), largest * strength, 0.0)[:, None, None]

    angle = amount("rotate", jnp.deg2rad(135))
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    # Only one of the following steps is not the identity. Rotation is about the image's centre.
    y, x = y - height / 2, x - width / 2
    y, x = y * jnp.cos(angle) - x * jnp.sin(angle), y * jnp.sin(angle) + x * jnp.cos(angle)
    y, x = y + height / 2, x + width / 2
    y, x = y + amount("shear_y", 0.99) * x, x + amount("shear_x", 0.99) * y
    y, x = y + amount("translate_y", 32), x + amount("translate_x", 32)
    rows, columns = jnp.floor(y).astype(int), jnp.floor(x).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    image = jnp.arange(len(images))[:, None, None]
    moved = images[image, rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return jnp.where(inside[..., None], moved, 0)


def _smooth(images):
    """Smooth as Pillow's SMOOTH: (5 · pixel + its eight neighbours) / 13, except at the border."""
    _, height, width, _ = images.shape
    if min(height, width) < 3:
        return images
    inner = sum(
        images[:, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    )
    inner = (inner + 4 * images[:, 1:-1, 1:-1]) / 13
    return images.at[:, 1:-1, 1:-1].set(inner)


def _equalized(images):
    """Equalise the histogram of every channel, with Pillow's rounding."""
    levels = jnp.round(images).astype(jnp.int32)
    count, height, width, channels = levels.shape
    flat = levels.reshape(count, -1, channels).transpose(0, 2, 1)
    image, channel = jnp.arange(count)[:, None, None], jnp.arange(channels)[:, None]
    histogram = jnp.zeros((count, channels, 256), jnp.int32).at[image, channel, flat].add(1)
    brightest = jnp.take_along_axis(histogram, flat.max(axis=-1, keepdims=True), axis=-1)
    step = (height * width - brightest) // 255
    below = jnp.cumsum(histogram, axis=-1) - histogram
    table = (step // 2 + below) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, table.clip(0, 255), jnp.arange(256))
    flat = jnp.take_along_axis(table, flat, axis=-1)
    return flat.transpose(0, 2, 1).reshape(levels.shape).astype(images.dtype)
