"""Mixed images, smoothed labels, and the methods that learn from them."""

import dataclasses
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods import LABELS, batch_of, random_logits

from orc_jax import config as configs
from orc_jax import losses, methods, models
from orc_jax.data import mixing
from orc_jax.loop import training_batches
from orc_jax.methods import switokd
from orc_jax.models.layers import Head
from orc_jax.models.network import Network
from orc_jax.prepare import prepare
from orc_jax.state import init_state
from orc_jax.step import compile_steps

SIZE = (12, 8)


class Same(nn.Module):
    """Gives what it gets (networks have a norm somewhere)."""

    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        self.norm(use_running_average=not train)(x)
        return x


def brightness(num_classes, norm):
    """A network whose features are the images' mean."""
    return Network(Same(norm), [Same(norm)], Head(num_classes))


def draw(seed=0, batch=6, **changes):
    data = configs.default_config().data
    data.update(changes)
    return mixing.draw(jax.random.key(seed), data, batch, SIZE)


def test_nothing_is_mixed_by_default():
    assert draw() is None
    labels, soft = mixing.labels_of(LABELS, None, 0.0, 5)
    assert labels is LABELS and soft is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.1, 4))
def test_mixup_has_one_share_and_every_partner_once(seed, alpha):
    mixture = draw(seed, mixup=alpha)
    assert sorted(mixture.partner.tolist()) == list(range(6))
    assert 0 <= mixture.lam <= 1
    np.testing.assert_array_equal(mixture.mask, mixture.mask[0, 0])


def test_shares_of_mixup_are_those_of_the_beta_distribution():
    shares = np.array([draw(seed, mixup=0.4).lam for seed in range(300)])
    # Beta(α, α): mean 1/2, variance 1 / (4 (2α + 1)).
    assert abs(shares.mean() - 0.5) < 0.06
    assert abs(shares.var() - 1 / (4 * 1.8)) < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_cutmix_cuts_one_rectangle(seed):
    mask = np.array(draw(seed, cutmix=1.0).mask)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    rows, columns = (np.flatnonzero((mask == 0).any(axis=axis)) for axis in (1, 0))
    assert (mask == 0).sum() == len(rows) * len(columns)
    for at in (rows, columns):
        assert len(at) < 2 or (np.diff(at) == 1).all()


def test_the_rectangle_of_cutmix_has_the_area_of_the_partners_share(monkeypatch):
    """Its sides are √(1−λ) of the image's, less what lies beyond the border."""
    for lam in (0.0, 0.36, 0.75):
        monkeypatch.setattr(mixing, "draw_lambda", lambda *_, lam=lam: jnp.float32(lam))
        masks = [np.array(draw(seed, cutmix=1.0).mask) == 0 for seed in range(60)]
        for axis, n in ((1, SIZE[0]), (0, SIZE[1])):
            longest = max(mask.any(axis=axis).sum() for mask in masks)
            assert longest == 2 * (int(np.sqrt(1 - lam) * n) // 2)


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_the_step_mixes_images_and_labels_alike(how, monkeypatch):
    """Of black and white images, the share of white is that of its class in the soft label."""
    seen = []

    def loss(config, batch):
        jax.debug.callback(lambda *x: seen.append(x), batch.outputs.features[0], batch.soft_labels)
        return {"ce": losses.cross_entropy(batch.logits, batch.truth).mean(axis=1)}

    config = tiny_config(("brightness",), "ind")
    config.data.update({how: 1.0, "pad": 0})
    labels = np.arange(64) % 2
    images = np.broadcast_to(255 * labels[:, None, None], (64, 8, 8)).astype(np.uint8)
    config.mesh.data = 1
    monkeypatch.setitem(models.NETWORKS, "brightness", models.Entry(brightness, torch_names=()))
    method = dataclasses.replace(methods.get("ind"), loss=loss)
    setup = prepare(config, (images, labels, images, labels))
    state = init_state(*setup.state_args(), {})
    train_step, *_ = compile_steps(setup.config, setup.group, method)
    for split, order in itertools.islice(training_batches(setup, 0), 4):
        state = train_step(state, split, order)
    jax.block_until_ready(state)
    jax.effects_barrier()
    mean, std = np.array(setup.train_split.mean), np.array(setup.train_split.std)
    mixed = 0
    for features, soft in seen:
        white = np.array(features)[:, 0] * std + mean
        np.testing.assert_allclose(white, np.array(soft)[:, 1], atol=1e-5)
        mixed += ((white > 0.01) & (white < 0.99)).sum()
    assert len(seen) == 4 and mixed > 8


def test_with_both_a_batch_is_either():
    kinds = {set(np.unique(draw(s, mixup=1.0, cutmix=1.0).mask)) <= {0, 1} for s in range(20)}
    assert kinds == {True, False}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_loss_of_mixed_labels_is_the_mixed_loss(seed, smoothing):
    mixture, z = draw(seed, mixup=1.0), random_logits(seed)
    labels, soft = mixing.labels_of(LABELS, mixture, smoothing, 5)
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
    share = float(mixture.lam)
    parts = [
        losses.cross_entropy(z, optax.smooth_labels(jax.nn.one_hot(y, 5), smoothing))
        for y in (LABELS, LABELS[mixture.partner])
    ]
    expected = share * parts[0] + (1 - share) * parts[1]
    np.testing.assert_allclose(losses.cross_entropy(z, soft), expected, rtol=1e-4, atol=1e-5)
    greater = LABELS if share >= 0.5 else LABELS[mixture.partner]
    np.testing.assert_array_equal(labels, greater)


# Besides logits and labels, what the loss of a method reads.
READS = {
    "kdcl": {"memory": jnp.full(4, 0.25)},
    "one": {"own_output": jnp.ones((6, 4))},
    "okddip": {"own_output": (jnp.ones((6, 3, 2)),) * 2},
    "dcm": {"auxiliary": jnp.stack([random_logits(1), random_logits(2)], axis=2)},
}


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_learns_from_soft_labels(name):
    """One-hot labels give what labels give; others give another loss."""
    method, config = methods.get(name), methods.defaults(name)
    if name == "dgkd":
        config.weight = 0.5  # by default it learns from its teachers alone

    def total(soft):
        batch = batch_of(random_logits(0), LABELS, soft_labels=soft, **READS.get(name, {}))
        if method.phase:
            batch = batch._replace(roles=method.phase(config, batch, jax.random.key(0)))
        return sum(jnp.sum(term) for term in method.loss(config, batch).values())

    one_hot = jax.nn.one_hot(LABELS, 5)
    np.testing.assert_allclose(total(one_hot), total(None), rtol=1e-5)
    assert abs(total(optax.smooth_labels(one_hot, 0.5)) - total(None)) > 1e-3


def test_switches_and_teachers_updates_read_the_mixed_labels():
    soft = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), 0.3)
    z = random_logits(3)
    found = switokd.switch(z[:1], z[1:], soft)
    t_label = jnp.abs(jax.nn.softmax(z[:1]) - soft).sum(axis=-1).mean(axis=-1)[:, None]
    s_label = jnp.abs(jax.nn.softmax(z[1:]) - soft).sum(axis=-1).mean(axis=-1)[None]
    delta = s_label - jnp.exp(-t_label / (t_label + s_label)) * t_label
    np.testing.assert_allclose(found.delta, delta, rtol=1e-5)

    config = methods.defaults("orc")
    config.feedback = "train_only"
    batch = batch_of(z, LABELS, soft_labels=soft)
    update = methods.get("orc").phase(config, batch, jax.random.key(0)).updates[0]
    expected = losses.cross_entropy(z[:1], soft).mean(axis=1)
    np.testing.assert_allclose(update.loss(z[:1], z, update.mix), expected, rtol=1e-5)
