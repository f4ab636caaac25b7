"""Augmented batches, made on the device from a whole split of uint8 images held there."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from orc_jax.data import trivial_augment
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.data.trivial_augment import grey


class OnDevice(NamedTuple):
    """A split on the device, normalised as (pixel/255 − mean) / std.

    Attributes:
      images: pixels.
      labels: class indices.
      mean: mean of pixel/255 in the training images, per channel.
      std: standard deviation of pixel/255 in the training images, per channel.
    """

    images: UInt8[Array, "N H W channels"]
    labels: Int[Array, " N"]
    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]


def scale(images: UInt8[np.ndarray, "N H W channels"]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and standard deviation of pixel/255, per channel.

    A channel without variance gets a standard deviation of 1.

    Args:
      images: pixels.

    Returns:
      (mean [channels], standard deviation [channels]), float32.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256))
    # In parts, because bincount converts every pixel to 8 bytes.
    for part in np.array_split(images, max(1, len(images) // 1024)):
        counts += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(channels)]
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    # Rounding can give a constant channel a tiny variance of either sign.
    variance = counts @ levels**2 / total - mean**2
    std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))
    return mean.astype(np.float32), std.astype(np.float32)


def epoch_order(key, epoch, num_images: int, batch_size: int) -> Int[Array, "steps B"]:
    """Draw an epoch's batches, as positions in the training split.

    The positions are a permutation that depends on (key, epoch) alone. The images left over after
    the last full batch are not used in this epoch.

    Args:
      key: PRNG key.
      epoch: index of the epoch.
      num_images: number of training images.
      batch_size: B.
    """
    steps = num_images // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_images)
    return order[: steps * batch_size].reshape(steps, batch_size)


class Augmentation(NamedTuple):
    """Random changes of the images of a batch, for P peers or the same for all.

    Rectangles are (top, left, height, width), relative to the image's height and width.

    Attributes:
      top: first row of the crop from the padded image, in pixels, −pad to pad.
      left: first column of the crop from the padded image, in pixels, −pad to pad.
      flip: whether the image is mirrored left to right.
      part: rectangle that is scaled to the whole image, or None.
      trivial: TrivialAugment's change of the image, or None.
      jitter: factors of brightness, contrast and saturation, or None.
      erased: rectangle that is filled with the mean colour, or None.
    """

    top: Int[Array, "*P B"]
    left: Int[Array, "*P B"]
    flip: Bool[Array, "*P B"]
    part: Float[Array, "4 *P B"] | None
    trivial: trivial_augment.Change | None
    jitter: Float[Array, "3 *P B"] | None
    erased: Float[Array, "4 *P B"] | None


def draw_augmentation(key, data, shape: tuple[int, ...], *, cropped: bool = False) -> Augmentation:
    """Draw the random changes that the config asks for.

    A resized crop covers 8 to 100 % of the image's area with an aspect ratio of 3/4 to 4/3
    (Szegedy et al. 2015, arXiv 1409.4842). An erased rectangle covers 2 to 33 % with an aspect
    ratio of 0.3 to 3.3 (Zhong et al. 2020, arXiv 1708.04896).

    Args:
      key: PRNG key.
      data: `config.data`.
      shape: (B,), or (P, B) to draw different changes for every peer.
      cropped: whether the images are random resized crops already.
    """
    crop_key, flip_key = jax.random.split(key)
    keys = jax.random.split(jax.random.fold_in(key, 1), 5)
    part_key, jitter_key, rectangle_key, erase_key, trivial_key = keys
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
        erased = _rectangle(rectangle_key, shape, (0.02, 0.33), (0.3, 3.3))
        erased *= jax.random.bernoulli(erase_key, data.erase, shape)
    return Augmentation(top, left, flip, part, trivial, jitter, erased)


def _rectangle(key, shape, areas, ratios):
    """Draw rectangles of an area and aspect ratio within these limits, no larger than the image."""
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, shape, minval=areas[0], maxval=areas[1])
    low, high = np.log(ratios)
    ratio = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    size = jnp.minimum(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)]), 1)
    return jnp.concatenate([jax.random.uniform(corner_key, (2, *shape)) * (1 - size), size])


def take(
    split: OnDevice,
    positions: Int[Array | np.ndarray, " B"],
    changes: Augmentation,
    pad_mode: Literal["zero", "reflect"],
):
    """Take images from a split, change and normalise them.

    Args:
      split: a split.
      positions: positions of the images in the split.
      changes: changes of these images.
      pad_mode: padding of the crop, black or reflected.

    Returns:
      [*P, B, H, W, channels], float32.
    """
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
        in_rows, in_columns = _inside(images.shape[-3:-1], changes.erased)
        erased = in_rows[..., :, None] & in_columns[..., None, :]
        images = jnp.where(erased[..., None], 0, images)
    return images


def _cropped(split, positions, changes, pad_mode):
    """Pad, crop and flip by index arithmetic, so that each image is read only once."""
    _, height, width, _ = split.images.shape
    columns = jnp.arange(width)
    columns = jnp.where(changes.flip[..., None], width - 1 - columns, columns)
    columns = columns + changes.left[..., None]
    rows = jnp.arange(height) + changes.top[..., None]
    in_rows, in_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    images = split.images[positions[:, None, None], rows[..., :, None], columns[..., None, :]]
    if pad_mode == "zero":
        inside = in_rows[..., :, None] & in_columns[..., None, :]
        images = jnp.where(inside[..., None], images, 0)
    return images


def _scaled_part(split, positions, changes):
    """Scale a part of each image to the image's size, interpolating bilinearly."""
    _, height, width, _ = split.images.shape
    top, left, part_height, part_width = (x[..., None] for x in changes.part)
    rows = (top + (jnp.arange(height) + 0.5) / height * part_height) * height - 0.5
    columns = (jnp.arange(width) + 0.5) / width
    columns = jnp.where(changes.flip[..., None], 1 - columns, columns)
    columns = (left + columns * part_width) * width - 0.5
    images = 0.0
    for row, row_weight in _neighbours(rows, height):
        for column, column_weight in _neighbours(columns, width):
            pixels = split.images[positions[:, None, None], row[..., :, None], column[..., None, :]]
            images += (row_weight[..., :, None] * column_weight[..., None, :])[..., None] * pixels
    return images


def _neighbours(coordinate, size):
    """Return (index, weight) of the two pixels that enclose a coordinate along an axis."""
    below = jnp.floor(coordinate)
    index = below.astype(jnp.int32)
    return (
        (index.clip(0, size - 1), 1 - (coordinate - below)),
        ((index + 1).clip(0, size - 1), coordinate - below),
    )


def _jittered(images, factors):
    """Multiply brightness, contrast and saturation by their factors; clip to 0 … 255."""
    brightness, contrast, saturation = (x[..., None, None, None] for x in factors)
    images = (images * brightness).clip(0, 255)
    mean = grey(images).mean(axis=(-3, -2, -1), keepdims=True)
    images = (mean + (images - mean) * contrast).clip(0, 255)
    colourless = grey(images)
    return (colourless + (images - colourless) * saturation).clip(0, 255)


def _inside(size, rectangle):
    """Return which rows [..., H] and which columns [..., W] have their centre in a rectangle."""
    top, left, height, width = (x[..., None] for x in rectangle)
    centres = [(jnp.arange(n) + 0.5) / n for n in size]
    return (
        (centres[0] >= top) & (centres[0] < top + height),
        (centres[1] >= left) & (centres[1] < left + width),
    )


def _reflect(index, size):
    """Reflect indices outside 0 … size−1 at the outermost pixel."""
    index = jnp.abs(index)
    return jnp.where(index > size - 1, 2 * (size - 1) - index, index)


def normalise(scale: OnDevice | Preprocessing, images):
    """Normalise pixels to the training images' mean of 0 and standard deviation of 1.

    Args:
      scale: mean and standard deviation of the training images.
      images: levels from 0 to 255, [..., H, W, channels].

    Returns:
      [..., H, W, channels], float32.
    """
    return (images.astype(jnp.float32) / 255 - scale.mean) / scale.std


def evaluation_batch(split: OnDevice, index, batch_size: int):
    """Return the index-th batch of a split in its order, and which of its rows count.

    Rows that fill up the last batch do not count, nor do rows with a negative label.

    Args:
      split: a split.
      index: index of the batch.
      batch_size: B.

    Returns:
      (normalised images [B, H, W, channels], labels [B], whether the row counts [B]).
    """
    positions = index * batch_size + jnp.arange(batch_size)
    inside = positions < len(split.labels)
    positions = jnp.minimum(positions, len(split.labels) - 1)
    labels = split.labels[positions]
    return normalise(split, split.images[positions]), labels, inside & (labels >= 0)
