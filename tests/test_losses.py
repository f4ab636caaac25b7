"""The losses against golden numbers, identities and finite differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from orc_jax import losses

BATCHES = golden("methods")["batches"]


def cases(pattern):
    """(logits, labels, match, case) of every golden case whose name matches."""
    found = []
    for batch in BATCHES:
        logits = np.array(batch["inputs"]["logits"], np.float32)
        labels = jnp.array(batch["inputs"]["labels"])
        for name, case in batch["cases"].items():
            if match := re.fullmatch(pattern, name):
                found.append((logits, labels, match, case))
    assert found, pattern
    return found


def check(loss, logits, case):
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, case["loss"], rtol=2e-5)
    np.testing.assert_allclose(gradient, case["dlogits"], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("logits, labels, match, case", cases("ind"))
def test_cross_entropy_golden(logits, labels, match, case):
    check(lambda z: losses.cross_entropy(z, labels).mean(axis=1).sum(), logits, case)


@pytest.mark.parametrize(
    "logits, labels, match, case", cases(r"kl_T([\d.]+)_student(\d+)_teacher(\d+)")
)
def test_kd_golden(logits, labels, match, case):
    temperature, student, teacher = float(match[1]), int(match[2]), int(match[3])

    def loss(z):
        return losses.kd(z[student], jax.lax.stop_gradient(z[teacher]), temperature)

    check(loss, logits, case)


@pytest.mark.parametrize("logits, labels, match, case", cases(r"dml_pairwise_T([\d.]+)_stopped"))
def test_pairwise_kd_golden(logits, labels, match, case):
    def loss(z):
        pairs = losses.pairwise_kd(z, float(match[1]))
        others = jnp.sum(pairs * (1 - jnp.eye(len(z)))) / (len(z) - 1)
        return losses.cross_entropy(z, labels).mean(axis=1).sum() + others

    check(loss, logits, case)


logit_arrays = st.integers(0, 2**31).map(
    lambda seed: jnp.float32(np.random.default_rng(seed).normal(0, 3, (3, 4, 6)))
)


@settings(deadline=None, max_examples=20)
@given(logit_arrays, st.floats(0.5, 20))
def test_pairwise_kd_is_kd_of_every_pair(logits, temperature):
    pairs = losses.pairwise_kd(logits, temperature)
    single = [[losses.kd(s, t, temperature) for t in logits] for s in logits]
    rounding = 2e-6 * temperature**2 + 2e-5  # two sums that nearly cancel, times T²
    np.testing.assert_allclose(pairs, single, rtol=1e-4, atol=rounding)
    assert np.all(np.array(pairs) > -rounding)


@settings(deadline=None, max_examples=10)
@given(logit_arrays)
def test_kd_at_high_temperature_is_half_the_squared_distance(logits):
    """T → ∞: T² KL tends to ‖s − t‖² / 2C of the centred logits (Hinton et al., section 2.1)."""
    s, t = (z - z.mean(axis=-1, keepdims=True) for z in logits[:2])
    limit = ((s - t) ** 2).sum(axis=-1).mean() / (2 * s.shape[-1])
    np.testing.assert_allclose(losses.kd(s, t, 300.0), limit, rtol=0.05, atol=2e-2)


def test_kd_gradient_by_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        s, t, direction = jnp.array(rng.normal(size=(3, 4, 6)))
        slope = jnp.vdot(jax.grad(losses.kd)(s, t, 3.0), direction)
        eps = 1e-6
        difference = losses.kd(s + eps * direction, t, 3.0) - losses.kd(s - eps * direction, t, 3.0)
        np.testing.assert_allclose(slope, difference / (2 * eps), rtol=1e-6)


def test_pairwise_targets_are_constant():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 6))
    gradient = jax.grad(lambda z: losses.pairwise_kd(z, 2.0)[0, 2])(logits)
    assert np.any(gradient[0]) and not np.any(gradient[1:])
