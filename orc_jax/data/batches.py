"""Augmented batches, made on the device from the whole data set there as uint8."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8


class OnDevice(NamedTuple):
    """A split with what normalises it: (pixel/255 − mean) / std, per channel."""

    images: UInt8[Array, "N H W channels"]
    labels: Int[Array, " N"]
    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]


def scale(images: UInt8[np.ndarray, "N H W channels"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [channels] of pixel/255."""
    channels = images.shape[-1]
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
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
    """How every image of a batch is moved.

    Attributes:
      top, left: corner of the crop, in pixels, −pad to pad.
      flip: bool, mirrored left to right.
    """

    top: Int[Array, "*P B"]
    left: Int[Array, "*P B"]
    flip: Bool[Array, "*P B"]


def draw_augmentation(key, config, shape: tuple[int, ...]) -> Augmentation:
    """Random crops from padded images and random flips, as `config.data` asks.

    Args:
      shape: (B,); (P, B) for other ones for every peer.
    """
    crop_key, flip_key = jax.random.split(key)
    pad = config.data.pad
    top, left = jax.random.randint(crop_key, (2, *shape), -pad, pad + 1)
    flip = jax.random.bernoulli(flip_key, 0.5, shape) & config.data.flip
    return Augmentation(top, left, flip)


def take(split: OnDevice, positions: Int[Array, " B"], moves: Augmentation, pad_mode: str):
    """The images at these positions, moved and normalised: [*P, B, H, W, channels] float32.

    Padding, crop and flip are index arithmetic, so that each image is read once.
    """
    _, height, width, _ = split.images.shape
    columns = jnp.arange(width)
    columns = jnp.where(moves.flip[..., None], width - 1 - columns, columns)
    columns = columns + moves.left[..., None]
    rows = jnp.arange(height) + moves.top[..., None]
    inside_rows, inside_columns = (
        (at >= 0) & (at < size) for at, size in ((rows, height), (columns, width))
    )
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    images = split.images[positions[:, None, None], rows[..., :, None], columns[..., None, :]]
    if pad_mode == "zero":
        inside = inside_rows[..., :, None] & inside_columns[..., None, :]
        images = jnp.where(inside[..., None], images, 0)
    return normalise(split, images)


def _reflect(at, size):
    """Positions outside 0 … size−1, mirrored at the outermost pixel."""
    at = jnp.abs(at)
    return jnp.where(at > size - 1, 2 * (size - 1) - at, at)


def normalise(split: OnDevice, images):
    """uint8 → float32 with the training images' mean 0 and deviation 1."""
    return (images.astype(jnp.float32) / 255 - split.mean) / split.std


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
