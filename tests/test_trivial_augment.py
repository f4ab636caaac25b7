"""TrivialAugment's operations against Pillow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from test_data import split_of

from orc_jax.data import batches, trivial_augment
from orc_jax.data.trivial_augment import KINDS, Change

HEIGHT, WIDTH = 24, 40


def picture():
    """Smooth, with some noise, of full range in one channel and half of it in another."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 10, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    image = image * [1.0, 0.5, 0.3] + rng.integers(0, 9, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def rotated(image, s):
    angle = np.deg2rad(135 * s)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = WIDTH / 2, HEIGHT / 2
    return affine(image, cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


# What Pillow makes of an image at a strength.
PILLOW = {
    "identity": lambda image, s: image,
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.99 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.99 * s),
    "saturation": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.99 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(6 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "rotate": rotated,
    "shear_x": lambda image, s: affine(image, 1, 0.99 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: affine(image, 1, 0, 0, 0.99 * s, 1, 0),
    "translate_x": lambda image, s: affine(image, 1, 0, 32 * s, 0, 1, 0),
    "translate_y": lambda image, s: affine(image, 1, 0, 0, 0, 1, 32 * s),
}
STRENGTHS = jnp.array([-1, -0.7, -0.3, 0.0, 0.2, 0.5, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_pillows(kind):
    image = picture()
    images = jnp.tile(jnp.asarray(image, jnp.float32), (len(STRENGTHS), 1, 1, 1))
    change = Change(jnp.full(len(STRENGTHS), KINDS.index(kind)), STRENGTHS)
    ours = np.array(trivial_augment.apply(images, change))
    for mine, strength in zip(ours, STRENGTHS.tolist(), strict=True):
        theirs = np.asarray(PILLOW[kind](Image.fromarray(image), strength), float)
        far = np.abs(mine - theirs).max(axis=-1) > 2
        # At a rounded coordinate either of two pixels is the nearest.
        assert far.mean() < 0.03, strength
    if kind != "identity":
        assert np.abs(ours - image).max() > 20


def test_draws():
    change = trivial_augment.draw(jax.random.key(0), (5, 4000))
    assert set(np.unique(change.kind)) == set(range(len(KINDS)))
    assert np.ptp(np.bincount(np.ravel(change.kind))) < 250
    strengths = np.unique(np.round(change.strength * trivial_augment.LEVELS))
    np.testing.assert_array_equal(strengths, np.arange(-30, 31))


@pytest.mark.parametrize("channels", [1, 3])
def test_in_a_batch(channels):
    """Every image by its own change, and those that are left alone stay as they were."""
    _, split = split_of(channels=channels)
    plain = batches.evaluation_batch(split, 0, 10)[0]
    nothing = batches.Augmentation(*jnp.zeros((2, 10), int), jnp.zeros(10, bool), *[None] * 4)
    kinds = jnp.arange(10) % len(KINDS)
    changed = batches.take(
        split, jnp.arange(10), nothing._replace(trivial=Change(kinds, jnp.full(10, 0.8))), "zero"
    )
    assert changed.shape == plain.shape and bool(jnp.isfinite(changed).all())
    np.testing.assert_allclose(changed[0], plain[0], atol=1e-5)
    assert (np.abs(changed - plain).max(axis=(1, 2, 3))[1:3] > 0.1).all()
