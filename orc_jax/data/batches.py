"""Augmented batches, made on the device from the whole data set there as uint8."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from orc_jax.data import trivial_augment
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.data.trivial_augment import grey


class OnDevice(NamedTuple):
    """A split with what normalises it: (pixel/255 − mean) / std, per channel."""

    images: UInt8[Array, "N H W channels"]
    labels: Int[Array, " N"]
    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]


def scale(images: UInt8[np.ndarray, "N H W channels"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [channels] of pixel/255."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256))
    for part in np.array_split(images, max(1, len(images) // 1024)):  # bincount takes 8 bytes each
        counts += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(channels)]
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    # Rounding can leave a constant channel with a tiny variance of either sign.
    variance = counts @ levels**2 / total - mean**2
    std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))
    return mean.astype(np.float32), std.astype(np.float32)


def epoch_order(key, epoch, num_images: int, batch_size: int) -> Int[Array, "steps B"]:
    """The epoch's batches as positions in the training split.

    A fresh permutation, a function of (key, epoch) alone. The images left over after the
    last full batch are not used in this epoch.
    """
    steps = num_images // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_images)
    return order[: steps * batch_size].reshape(steps, batch_size)


class Augmentation(NamedTuple):
    """How every image of a batch is changed; lengths are shares of the image's height or width.

    Attributes:
      top, left: corner of the padded crop, in pixels, −pad to pad.
      flip: bool, mirrored left to right.
      part: top, left, height and width of the part that is scaled to the whole, or None.
      trivial: the one change of TrivialAugment, or None.
      jitter: factors of brightness, contrast and saturation, or None.
      erased: top, left, height and width of what becomes the mean colour, or None.
    """

    top: Int[Array, "*P B"]
    left: Int[Array, "*P B"]
    flip: Bool[Array, "*P B"]
    part: Float[Array, "4 *P B"] | None
    trivial: trivial_augment.Change | None
    jitter: Float[Array, "3 *P B"] | None
    erased: Float[Array, "4 *P B"] | None


def draw_augmentation(key, data, shape: tuple[int, ...], *, cropped: bool = False) -> Augmentation:
    """Random changes as the settings ask for them.

    A part is 8 to 100 % of an image's area, 3/4 to 4/3 as wide as high (Szegedy et al. 2015);
    what is erased 2 to 33 %, 0.3 to 3.3 as wide as high (Zhong et al. 2020).

    Args:
      data: `config.data`.
      shape: (B,); (P, B) for other ones for every peer.
      cropped: whether the images come as random parts already.
    """
    crop_key, flip_key = jax.random.split(key)
    keys = jax.random.split(jax.random.fold_in(key, 1), 5)
    part_key, jitter_key, erase_key, whether_key, trivial_key = keys
    pad = 0 if data.resized_crop else data.pad
    top, left = jax.random.randint(crop_key, (2, *shape), -pad, pad + 1)
    flip = jax.random.bernoulli(flip_key, 0.5, shape) & data.flip
    part = trivial = jitter = erased = None
    if data.resized_crop and not cropped:
        part = _rectangle(part_key, shape, (0.08, 1.0), (3 / 4, 4 / 3))
    if data.trivial_augment:
        trivial = trivial_augment.draw(trivial_key, shape)
    if data.jitter:
        low, high = max(0.0, 1 - data.jitter), 1 + data.jitter
        jitter = jax.random.uniform(jitter_key, (3, *shape), minval=low, maxval=high)
    if data.erase:
        erased = _rectangle(erase_key, shape, (0.02, 0.33), (0.3, 3.3))
        erased *= jax.random.bernoulli(whether_key, data.erase, shape)
    return Augmentation(top, left, flip, part, trivial, jitter, erased)


def _rectangle(key, shape, areas, ratios):
    """Random (top, left, height, width), cut to the image where it would be larger."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, shape, minval=areas[0], maxval=areas[1])
    low, high = np.log(ratios)
    ratio = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    size = jnp.minimum(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)]), 1)
    return jnp.concatenate([jax.random.uniform(place_key, (2, *shape)) * (1 - size), size])


def take(split: OnDevice, positions: Int[Array, " B"], changes: Augmentation, pad_mode: str):
    """The images at these positions, changed and normalised: [*P, B, H, W, channels] float32."""
    if changes.part is None:
        images = _cropped(split, positions, changes, pad_mode)
    else:
        images = _scaled_part(split, positions, changes)
    if changes.trivial is not None:
        images = trivial_augment.apply(images.astype(jnp.float32), changes.trivial)
    if changes.jitter is not None:
        images = _jittered(images, changes.jitter)
    images = normalise(split, images)
    if changes.erased is not None:
        rows, columns = _inside(images.shape[-3:-1], changes.erased)
        images = jnp.where((rows[..., :, None] & columns[..., None, :])[..., None], 0, images)
    return images


def _cropped(split, positions, changes, pad_mode):
    """Padding, crop and flip as index arithmetic, so that each image is read once."""
    _, height, width, _ = split.images.shape
    columns = jnp.arange(width)
    columns = jnp.where(changes.flip[..., None], width - 1 - columns, columns)
    columns = columns + changes.left[..., None]
    rows = jnp.arange(height) + changes.top[..., None]
    inside_rows, inside_columns = (
        (at >= 0) & (at < size) for at, size in ((rows, height), (columns, width))
    )
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    images = split.images[positions[:, None, None], rows[..., :, None], columns[..., None, :]]
    if pad_mode == "zero":
        inside = inside_rows[..., :, None] & inside_columns[..., None, :]
        images = jnp.where(inside[..., None], images, 0)
    return images


def _scaled_part(split, positions, changes):
    """A part of each image at the size of the whole, bilinear between the centres of pixels."""
    _, height, width, _ = split.images.shape
    top, left, part_height, part_width = (x[..., None] for x in changes.part)
    rows = (top + (jnp.arange(height) + 0.5) / height * part_height) * height - 0.5
    columns = (jnp.arange(width) + 0.5) / width
    columns = jnp.where(changes.flip[..., None], 1 - columns, columns)
    columns = (left + columns * part_width) * width - 0.5
    images = 0.0
    for row, row_weight in _neighbours(rows, height):
        for column, column_weight in _neighbours(columns, width):
            seen = split.images[positions[:, None, None], row[..., :, None], column[..., None, :]]
            images += (row_weight[..., :, None] * column_weight[..., None, :])[..., None] * seen
    return images


def _neighbours(at, size):
    """The two pixels around a place, and how much each of them counts."""
    below = jnp.floor(at)
    index = below.astype(jnp.int32)
    return (
        (index.clip(0, size - 1), 1 - (at - below)),
        ((index + 1).clip(0, size - 1), at - below),
    )


def _jittered(images, factors):
    """Brightness, contrast and saturation, each times its factor, within 0 to 255."""
    brightness, contrast, saturation = (x[..., None, None, None] for x in factors)
    images = (images * brightness).clip(0, 255)
    mean = grey(images).mean(axis=(-3, -2, -1), keepdims=True)
    images = (mean + (images - mean) * contrast).clip(0, 255)
    colourless = grey(images)
    return (colourless + (images - colourless) * saturation).clip(0, 255)


def _inside(size, rectangle):
    """Which rows [..., H] and which columns [..., W] have their centre in a rectangle."""
    top, left, height, width = (x[..., None] for x in rectangle)
    centres = [(jnp.arange(n) + 0.5) / n for n in size]
    return (
        (centres[0] >= top) & (centres[0] < top + height),
        (centres[1] >= left) & (centres[1] < left + width),
    )


def _reflect(at, size):
    """Positions outside 0 … size−1, mirrored at the outermost pixel."""
    at = jnp.abs(at)
    return jnp.where(at > size - 1, 2 * (size - 1) - at, at)


def normalise(scale: OnDevice | Preprocessing, images):
    """Pixels of 0 to 255 → float32 with the training images' mean 0 and deviation 1."""
    return (images.astype(jnp.float32) / 255 - scale.mean) / scale.std


def evaluation_batch(split: OnDevice, index, batch_size: int):
    """The index-th batch of a split in order, and which of its rows count.

    The last batch is filled up with rows that do not count; nor do rows of a negative label.

    Returns:
      Normalised images [B, H, W, channels], labels [B], counts [B] bool.
    """
    at = index * batch_size + jnp.arange(batch_size)
    inside = at < len(split.labels)
    at = jnp.minimum(at, len(split.labels) - 1)
    counts = inside & (split.labels[at] >= 0)
    return normalise(split, split.images[at]), split.labels[at], counts
