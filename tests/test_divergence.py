"""Divergences in KD's place: golden numbers, every method with each, invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods import LABELS, batch_of, config_of, loss_and_gradient, random_logits
from test_step import build

from orc_jax import checks, losses, methods
from orc_jax.errors import UserError
from orc_jax.methods import divergence, orc

BATCHES = golden("divergences")["batches"]
CASES = [(batch, name) for batch in BATCHES for name in batch["cases"]]
NUMBERS = {"T": "temperature", "a": "dkd_alpha", "g": "dist_gamma"}
WITH_KD = [name for name in methods.NAMES if "divergence" in methods.defaults(name)]


def named(case):
    """The config that a golden name such as dkd_T4_a1_b8 describes."""
    kind, *numbers = case.split("_")
    config = config_of("kd", divergence=kind)
    for number in numbers:
        config[NUMBERS.get(number[0], f"{kind}_beta")] = float(number[1:])
    return config


@pytest.mark.parametrize("batch, case", CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_golden(batch, case):
    student, teacher = (jnp.array(batch[name], jnp.float32) for name in ("student", "teacher"))
    labels, expected = jnp.array(batch["labels"]), batch["cases"][case]
    config = named(case)
    loss, gradient = jax.value_and_grad(lambda s: divergence.between(config, s, teacher, labels))(
        student
    )
    np.testing.assert_allclose(loss, expected["loss"], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected["dstudent"], rtol=2e-4, atol=3e-6)


@pytest.mark.parametrize("kind", divergence.NAMES)
def test_pairs_are_those_one_by_one(kind):
    z, config = random_logits(0), config_of("dml", divergence=kind, temperature=2.0)
    pairs = divergence.pairwise(config, z, LABELS)
    for i in range(len(z)):
        for j in range(len(z)):
            alone = divergence.between(config, z[i], z[j], LABELS)
            np.testing.assert_allclose(pairs[i, j], alone, rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda z: divergence.pairwise(config, z, LABELS)[0].sum())(z)
    assert np.any(gradient[0]) and not np.any(gradient[1:])


@pytest.mark.parametrize("constant_target", [True, False])
@pytest.mark.parametrize("kind", divergence.NAMES)
def test_a_confident_peer_is_no_teacher_of_its_own(kind, constant_target):
    """DIST's 1e-8 keeps the correlation of a nearly constant column with itself below 1."""
    z = random_logits(0) + 12 * jax.nn.one_hot(LABELS % 2, 5)  # three classes have no image
    config = config_of("dml", divergence=kind, temperature=1.0)

    def own(z):
        return jnp.trace(divergence.pairwise(config, z, LABELS, constant_target))

    loss, gradient = jax.value_and_grad(own)(z)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("kind", divergence.NAMES)
def test_a_constant_target_is_the_callers_choice(kind):
    z, config = random_logits(0), config_of("dml", divergence=kind)
    for constant_target in (True, False):
        gradient = jax.grad(
            lambda z, c=constant_target: divergence.pairwise(config, z, LABELS, c)[0, 1]
        )(z)
        assert np.any(gradient[0]) and np.any(gradient[1]) != constant_target


@pytest.mark.parametrize("kind", divergence.NAMES)
def test_equal_logits_have_a_finite_gradient(kind):
    config, z = config_of("kd", divergence=kind), random_logits(0)[0].at[0].set(0.5)
    gradient = jax.grad(lambda s: divergence.between(config, s, random_logits(1)[0], LABELS))(z)
    assert np.all(np.isfinite(gradient))


def test_dkd_of_two_classes_is_kd_by_alpha():
    s, t, labels = random_logits(0)[0, :, :2], random_logits(1)[0, :, :2], LABELS % 2
    found, gradient = jax.value_and_grad(losses.dkd)(s, t, labels, 2.0, 3.0, 8.0)
    expected, slope = jax.value_and_grad(losses.kd)(s, t, 2.0)
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, 3 * slope, rtol=1e-4, atol=1e-6)


def test_dist_of_one_image_has_no_relations_between_images():
    s, t = random_logits(0)[0, :1], random_logits(1)[0, :1]
    loss, gradient = jax.value_and_grad(losses.dist)(s, t, 2.0, 0.0, 3.0)
    assert loss == 2.0**2 * 3.0 and not np.any(gradient)


def test_the_floor_of_dcm_is_of_kl_alone():
    z = random_logits(0)
    for kind in divergence.NAMES:
        config = config_of("dcm", divergence=kind)
        with_floor, without = (
            divergence.pairwise(config, z, LABELS, floor=floor) for floor in (0.5, 0.0)
        )
        assert np.array_equal(with_floor, without) == (kind != "kl")


# What some methods' losses read besides logits [4, 6, 5].
RNG = np.random.default_rng(0)
FIELDS = {
    "one": {"own_output": jnp.float32(RNG.normal(size=(6, 4)))},
    "okddip": {"own_output": tuple(jnp.float32(RNG.normal(size=(2, 6, 3, 2))))},
    "dcm": {"auxiliary": jnp.float32(RNG.normal(size=(4, 6, 2, 5)))},
}


def test_every_method_with_a_teacher_has_the_settings():
    assert set(methods.NAMES) - set(WITH_KD) == {"ind"}


@pytest.mark.parametrize("name", WITH_KD)
def test_every_method_takes_every_divergence(name):
    results = []
    for kind in divergence.NAMES:
        config = config_of(name, divergence=kind)
        methods.check(config, ["pixels"] * 4)
        results.append(
            loss_and_gradient(name, config, random_logits(0), LABELS, **FIELDS.get(name, {}))
        )
    found = [round(float(loss), 4) for loss, _ in results]
    assert len(set(found)) == len(found), found
    assert all(np.all(np.isfinite(gradient["logits"])) for _, gradient in results)


@pytest.mark.parametrize("kind", divergence.NAMES)
def test_all_of_orc_learns_by_it(kind):
    """Private teaching, group teaching by each teacher, and by their ensemble."""
    z, config = random_logits(0), config_of("orc", divergence=kind, beta=1.0)
    batch, promoted = batch_of(z, LABELS), jnp.arange(4) == 1

    def of(student, teacher):
        return divergence.between(config, student, teacher, LABELS)

    private = orc.private_teaching(config, batch, promoted)
    np.testing.assert_allclose(private.loss(z[1:2], z, None), [of(z[1], z[0])], rtol=1e-5)

    batch = batch._replace(roles=orc.assign(config, promoted))
    for teaching, expected in (
        ("individual", of(z[2], z[0]) + of(z[2], z[1])),
        ("ensemble", of(z[2], (z[0] + z[1]) / 2)),
    ):
        config.teaching = teaching
        found = orc.loss(config, batch)["group_kd"]
        np.testing.assert_allclose(found[2], expected, rtol=1e-4)
        assert not np.any(found[:2])


def test_dkd_asks_for_the_class_of_the_greater_part():
    """Soft labels are of cross-entropy alone."""
    z, config = random_logits(0), config_of("kd", divergence="dkd")
    found = [
        methods.get("kd").loss(config, batch_of(z, LABELS, soft_labels=soft))["kd"]
        for soft in (None, jnp.full((6, 5), 0.2))
    ]
    np.testing.assert_array_equal(*found)


def test_a_group_learns_by_another_divergence():
    config = tiny_config(divergence="dist")
    setup, state, train_step, order = build(config)
    state = train_step(state, setup.train_split, order)
    assert np.all(np.isfinite(state.sums["loss"])) and np.all(state.failed_at == -1)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 5), st.floats(-3, 3), st.integers(0, 100))
def test_standardized_ignores_scale_and_shift(scale, shift, seed):
    z, t = random_logits(seed)[0], random_logits(seed + 1)[0]
    config = config_of("kd", divergence="standardized", temperature=2.0)
    np.testing.assert_allclose(
        divergence.between(config, scale * z + shift, t, LABELS),
        divergence.between(config, z, t, LABELS),
        rtol=1e-3,
        atol=1e-5,
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100), st.sampled_from(divergence.NAMES))
def test_none_from_itself(seed, kind):
    z = random_logits(seed)[0]
    config = config_of("kd", divergence=kind)
    loss, gradient = jax.value_and_grad(lambda s: divergence.between(config, s, z, LABELS))(z)
    np.testing.assert_allclose(loss, 0, atol=1e-4)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_dkd_with_both_weights_of_kd_is_kd():
    """KD = TCKD + (1 − p_y) NCKD: for one image, β = 1 − p_y of the teacher."""
    s, t = random_logits(0)[0][:1], random_logits(1)[0][:1]
    rest = float(1 - jax.nn.softmax(t / 2)[0, 0])
    found = losses.dkd(s, t, jnp.zeros(1, int), 2.0, 1.0, rest)
    np.testing.assert_allclose(found, losses.kd(s, t, 2.0), rtol=1e-4)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("divergence", "dkl", "allowed: kl, standardized, dkd, dist"),
        ("dkd_beta", -1.0, "dkd_beta is -1.0, allowed: 0 or more"),
    ],
)
def test_wrong_settings(key, value, message):
    config = tiny_config()
    config.method[key] = value
    with pytest.raises(UserError, match=message):
        checks.check(config, 1)
