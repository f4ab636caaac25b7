"""Augmentation of a batch on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_data import split_of

from orc_jax import config as configs
from orc_jax.data import batches

N = 10


def settings(**changes):
    data = configs.default_config().data
    data.update({"pad": 0, "flip": False} | changes)
    return data


def draw(shape=(N,), seed=0, **changes):
    return batches.draw_augmentation(jax.random.key(seed), settings(**changes), shape)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crop_and_flip_are_those_of_a_padded_image(mode):
    images, split = split_of()
    pad = 2
    moves = draw(pad=pad, flip=True)
    assert set(np.array(moves.flip)) == {True, False}
    assert np.array(moves.top).min() < 0 < np.array(moves.top).max()
    positions = jnp.arange(10)[::-1]
    batch = batches.take(split, positions, moves, mode)
    np_mode = {"zero": "constant", "reflect": "reflect"}[mode]
    for i, position in enumerate(np.array(positions)):
        padded = np.pad(images[position], ((pad, pad), (pad, pad), (0, 0)), mode=np_mode)
        top, left = int(moves.top[i]) + pad, int(moves.left[i]) + pad
        crop = padded[top : top + 6, left : left + 6]
        expected = crop[:, ::-1] if moves.flip[i] else crop
        np.testing.assert_allclose(
            batch[i], batches.normalise(split, jnp.array(expected)), atol=1e-6
        )


def test_no_augmentation_gives_the_images():
    _, split = split_of()
    batch = batches.take(split, jnp.arange(10), draw(), "zero")
    np.testing.assert_allclose(batch, batches.evaluation_batch(split, 0, 10)[0], atol=1e-6)


ALL = {"resized_crop": True, "flip": True, "jitter": 0.4, "erase": 0.7, "trivial_augment": True}


@pytest.mark.parametrize("changes", [{"pad": 2, "flip": True}, ALL])
def test_peers_can_have_changes_of_their_own(changes):
    """Changes [P, B] give [P, B, ...], each row what its changes alone give."""
    _, split = split_of(channels=3)
    drawn = draw((3, N), **changes)
    positions = np.arange(N)
    together = batches.take(split, positions, drawn, "zero")
    for p in range(3):
        alone = batches.take(
            split, positions, jax.tree.map(lambda x, p=p: x[..., p, :], drawn), "zero"
        )
        np.testing.assert_allclose(together[p], alone, atol=1e-5)
    assert not np.array_equal(together[0], together[1])


def test_the_whole_as_a_part_is_the_image():
    _, split = split_of()
    drawn = draw(resized_crop=True)._replace(part=jnp.array([[0.0] * N] * 2 + [[1.0] * N] * 2))
    plain = batches.evaluation_batch(split, 0, N)[0]
    np.testing.assert_allclose(batches.take(split, jnp.arange(N), drawn, "zero"), plain, atol=1e-5)
    mirrored = drawn._replace(flip=jnp.ones(N, bool))
    np.testing.assert_allclose(
        batches.take(split, jnp.arange(N), mirrored, "zero"), plain[:, :, ::-1], atol=1e-5
    )


def test_parts_of_a_slope_are_slopes():
    """Bilinear: of an image that grows by one a row, a part is the same slope, scaled."""
    rows = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None], (32, 32, 1))
    split = batches.OnDevice(rows[None], np.zeros(1, int), np.zeros(1), np.full(1, 1 / 255))
    part = jnp.array([0.25, 0.5, 0.5, 0.25])[:, None]
    batch = batches.take(split, jnp.zeros(1, int), draw((1,))._replace(part=part), "zero")
    expected = (0.25 + (np.arange(32) + 0.5) / 32 * 0.5) * 32 - 0.5
    np.testing.assert_allclose(batch[0, :, 7, 0], expected, atol=1e-3)


def test_parts_lie_within_and_have_the_shapes_asked_for():
    top, left, height, width = np.array(draw((2000,), resized_crop=True).part)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert 0.07 < area.min() < 0.12 and 0.9 < area.max() <= 1 and 0.48 < area.mean() < 0.56
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.34
    data = settings(resized_crop=True)
    streamed = batches.draw_augmentation(jax.random.key(0), data, (N,), cropped=True)
    assert streamed.part is None  # cut before they came


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter(channels):
    images, split = split_of(channels=channels)
    ones = jnp.ones((3, N))
    plain = batches.evaluation_batch(split, 0, N)[0]

    def jittered(factors):
        batch = batches.take(split, jnp.arange(N), draw()._replace(jitter=factors), "zero")
        return np.array(batch * split.std + split.mean) * 255

    np.testing.assert_allclose(jittered(ones), np.array(images, float), atol=1e-3)
    np.testing.assert_allclose(jittered(ones.at[0].set(0.5)), images / 2, atol=1e-3)
    contrast = jittered(ones.at[1].set(0.0))
    assert np.ptp(contrast, axis=(1, 2, 3)).max() < 1e-2
    saturation = jittered(ones.at[2].set(0.0))
    assert np.ptp(saturation, axis=-1).max() < 1e-2
    drawn = draw((500,), jitter=0.4).jitter
    assert 0.6 <= drawn.min() < 0.62 and 1.38 < drawn.max() <= 1.4
    assert plain.shape == saturation.shape


def test_erasing():
    _, split = split_of(size=20)
    plain = np.array(batches.evaluation_batch(split, 0, N)[0])
    erased = jnp.array([0.25, 0.5, 0.5, 0.25])[:, None] * jnp.ones(N).at[3].set(0)
    batch = np.array(batches.take(split, jnp.arange(N), draw()._replace(erased=erased), "zero"))
    changed = (batch != plain).any(axis=(0, 3))
    assert changed[5:15, 10:15].all() and changed.sum() == 50
    assert (batch[0, 5:15, 10:15] == 0).all() and (batch[3] == plain[3]).all()
    share = np.array(draw((2000,), erase=0.3).erased[2] > 0).mean()
    assert 0.25 < share < 0.35
    _, _, height, width = np.array(draw((2000,), erase=1.0).erased)
    assert (height * width).min() > 0.02 and (height * width).max() <= 0.3301
