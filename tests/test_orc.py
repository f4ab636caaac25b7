"""ORC: golden losses, roles, promotion, feedback samples and checks of its settings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods import batch_of

from orc_jax import losses, methods
from orc_jax.errors import UserError
from orc_jax.methods import orc

CASES = [
    (batch["inputs"], re.fullmatch(r"orc_k(\d+)_beta([\d.]+)_T([\d.]+)", name), case)
    for batch in golden("methods")["batches"]
    for name, case in batch["cases"].items()
    if name.startswith("orc_")
]


def settings_of(**kwargs):
    config = methods.defaults("orc")
    config.update(kwargs)
    return config


def peer_losses(config, logits, labels, roles):
    """[P] the sum of a peer's loss terms."""
    return sum(orc.loss(config, batch_of(logits, labels, roles=roles)).values())


def logits_of(seed, peers=4, batch=6, classes=5):
    return jnp.float32(np.random.default_rng(seed).normal(0, 2, (peers, batch, classes)))


@pytest.mark.parametrize("inputs, match, case", CASES)
def test_golden(inputs, match, case):
    config = settings_of(
        pivot=0,
        temporary_teaches="before_private",
        num_temporary=int(match[1]),
        beta=float(match[2]),
        temperature=float(match[3]),
    )
    logits, labels = jnp.array(inputs["logits"], jnp.float32), jnp.array(inputs["labels"])
    cross_entropy = losses.cross_entropy(logits, labels).mean(axis=1)
    np.testing.assert_allclose(cross_entropy, case["peer_cross_entropy"], rtol=1e-5)

    promoted = orc.promote(config, cross_entropy, jax.random.key(0))
    assert set(np.flatnonzero(promoted)) == set(case["temporary_teachers"])
    students = ~(promoted | orc.is_pivot(config, len(logits)))
    assert set(np.flatnonzero(students)) == set(case["students"])

    asks = jnp.array(~orc.is_pivot(config, len(logits)))
    share = orc.feedback_share(cross_entropy, asks)
    np.testing.assert_allclose(share[1:], case["feedback_share"], rtol=1e-5)
    assert share[0] == 0

    roles = orc.assign(config, promoted)

    def total(z):
        return peer_losses(config, z, labels, roles).sum()

    loss, gradient = jax.value_and_grad(total)(logits)
    np.testing.assert_allclose(loss, case["loss"], rtol=2e-5)
    np.testing.assert_allclose(gradient, case["dlogits"], rtol=1e-4, atol=2e-6)
    assert not np.any(gradient[0])


def test_roles_with_pivot():
    """Of peers with cross-entropies .3 < .5 < .9, k = 1 promotes the first, PT teaches all."""
    config = settings_of(pivot=1)
    promoted = orc.promote(config, jnp.array([0.5, 0.1, 0.3, 0.9]), jax.random.key(0))
    roles = orc.assign(config, promoted)
    assert promoted.tolist() == [False, False, True, False]
    assert roles.learns.tolist() == [True, False, False, True]  # TT takes its step from PT first
    config.temporary_teaches = "before_private"
    assert orc.assign(config, promoted).learns.tolist() == [True, False, True, True]
    assert roles.learns_from.astype(int).tolist() == [
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]


def test_roles_without_pivot():
    config = settings_of(pivot=None, num_temporary=2)
    promoted = orc.promote(config, jnp.array([0.5, 0.1, 0.3, 0.9]), jax.random.key(0))
    roles = orc.assign(config, promoted)
    assert promoted.tolist() == [False, True, True, False]
    assert roles.learns.tolist() == [True, False, False, True]
    assert roles.learns_from.astype(int).tolist() == [
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 1, 0],
    ]


@pytest.mark.parametrize("pivot", [0, None])
def test_promotion_ablations(pivot):
    cross_entropy = jnp.array([0.5, 0.9, 0.3, 0.1])
    fixed = settings_of(pivot=pivot, promotion="fixed")
    first = 0 if pivot is None else 1
    assert np.flatnonzero(orc.promote(fixed, cross_entropy, jax.random.key(0))).tolist() == [first]
    random = settings_of(pivot=pivot, promotion="random", num_temporary=2)
    counts = sum(
        np.array(orc.promote(random, cross_entropy, jax.random.key(i))).astype(int)
        for i in range(100)
    )
    assert counts.sum() == 200
    assert np.all(counts[first:] > 20) and np.all(counts[:first] == 0)


def losses_of(config, logits, labels, promoted):
    """The losses where private and group teaching are one step."""
    config.temporary_teaches = "before_private"
    roles = orc.assign(config, jnp.array(promoted))
    return peer_losses(config, jnp.array(logits), labels, roles)


def test_each_teaching_switched_off_leaves_cross_entropy():
    logits, labels = logits_of(0), jnp.array([0, 1, 2, 3, 4, 0])
    promoted = [False, True, False, False]
    ce = losses.cross_entropy(jnp.array(logits), labels).mean(axis=1)
    full = losses_of(settings_of(), logits, labels, promoted)
    private = losses_of(settings_of(private=False), logits, labels, promoted)
    group = losses_of(settings_of(group=False), logits, labels, promoted)
    intensive = losses_of(settings_of(intensive=False), logits, labels, promoted)
    np.testing.assert_allclose(private[1], ce[1], rtol=1e-6)
    np.testing.assert_allclose(private[2:], full[2:], rtol=1e-6)
    np.testing.assert_allclose(group[2:], ce[2:], rtol=1e-6)
    np.testing.assert_allclose(group[1], full[1], rtol=1e-6)
    assert full[0] == 0
    np.testing.assert_allclose(intensive[0], ce[0], rtol=1e-6)
    np.testing.assert_allclose(intensive[1:], full[1:], rtol=1e-6)


def test_ensemble_is_one_target_from_the_mean_of_the_teachers():
    logits, labels = logits_of(1), jnp.array([0, 1, 2, 3, 4, 0])
    config = settings_of(teaching="ensemble", beta=0.7, temperature=2.0)
    loss = losses_of(config, logits, labels, [False, True, False, False])
    ce = losses.cross_entropy(jnp.array(logits), labels).mean(axis=1)
    teachers = {1: logits[0], 2: (logits[0] + logits[1]) / 2, 3: (logits[0] + logits[1]) / 2}
    for i, teacher in teachers.items():
        expected = 0.3 * ce[i] + 0.7 * losses.kd(logits[i], teacher, 2.0)
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.permutations(range(1, 5)), st.sampled_from([0, None]))
def test_permuting_the_students_permutes_the_results(seed, order, pivot):
    """Peer 0 stays (it may be the pivot); the others change places."""
    order = np.array([0, *order])
    logits = logits_of(seed, peers=5)
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    config = settings_of(pivot=pivot, num_temporary=2)

    def results(z):
        ce = losses.cross_entropy(z, labels).mean(axis=1)
        roles = orc.assign(config, orc.promote(config, ce, jax.random.key(0)))
        share = orc.feedback_share(ce, roles.learns)
        return peer_losses(config, z, labels, roles), roles.promoted, share

    for here, there in zip(
        results(jnp.array(logits[order])), results(jnp.array(logits)), strict=True
    ):
        np.testing.assert_allclose(here, np.array(there)[order], rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_feedback_samples_are_errors_of_the_students_that_asked(seed, error_rate):
    rng = np.random.default_rng(seed)
    wrong = rng.random((4, 16)) < error_rate
    students = np.array([False, True, True, True])
    wrong[2] = False
    ce = rng.random((4, 16)).astype(np.float32)
    sample, asker = orc.draw_feedback(
        jax.random.key(seed % 1000), jnp.array(ce), jnp.array(wrong), jnp.array(students)
    )
    sample, asker = np.array(sample), np.array(asker)
    if not wrong[1:].any():
        assert np.all(asker == -1)
        assert sample.tolist() == np.argsort(-ce[1:].sum(axis=0), kind="stable").tolist()
    else:
        assert np.all(wrong[asker, sample])
        assert set(asker) <= {1, 3}


def test_feedback_shares_and_samples_are_drawn_as_asked():
    """Over many draws: askers by softmax(CE), samples of each uniformly over its errors."""
    ce = jnp.array([[9.0] * 8, [0.5] * 8, [1.5] * 8])
    wrong = jnp.zeros((3, 8), bool).at[1, :4].set(True).at[2, 4:6].set(True).at[0].set(True)
    students = jnp.array([False, True, True])
    draw = jax.vmap(lambda key: orc.draw_feedback(key, ce, wrong, students))
    sample, asker = draw(jax.random.split(jax.random.key(0), 4000))
    expected = jax.nn.softmax(jnp.array([0.5, 1.5]))
    frequency = [(asker == i).mean() for i in (1, 2)]
    np.testing.assert_allclose(frequency, expected, atol=0.01)
    frequency = [(sample == b).mean() for b in range(8)]
    expected = [expected[0] / 4] * 4 + [expected[1] / 2] * 2 + [0, 0]
    np.testing.assert_allclose(frequency, expected, atol=0.01)


def test_private_teaching_comes_before_group_teaching():
    """The TT learns from the PT as it is by then; nothing of it is left in the loss."""
    config = settings_of(beta=0.3, temperature=2.0)
    logits, labels = jnp.array(logits_of(3)), jnp.array([0, 1, 2, 3, 4, 0])
    roles = orc.phase(config, batch_of(logits, labels), jax.random.key(1))
    intensive, private = roles.updates
    assert (intensive.name, private.name) == ("intensive", "private") and private.mix is None
    np.testing.assert_array_equal(private.learners, roles.promoted)
    assert private.among.tolist() == [False, True, True, True] and private.at_most == 1
    taught = logits.at[0].add(1.5 * logits_of(4)[0])
    cross_entropy = losses.cross_entropy(logits[1:], labels).mean(axis=1)
    expected = 0.7 * cross_entropy + 0.3 * losses.kd(logits[1:], taught[0], 2.0)
    np.testing.assert_allclose(private.loss(logits[1:], taught, None), expected, rtol=1e-5)
    terms = orc.loss(config, batch_of(logits, labels, roles=roles))
    assert terms.keys() == {"group_ce", "group_kd", "plain_ce"}
    assert not any(np.any(term[roles.promoted]) for term in terms.values())
    for change in ({"private": False}, {"group": False}, {"num_temporary": 0}):
        one = orc.phase(settings_of(**change), batch_of(logits, labels), jax.random.key(1))
        assert [update.name for update in one.updates] == ["intensive"]


@pytest.mark.parametrize("pivot", [0, None])
@pytest.mark.parametrize("feedback", ["mixup", "feedback_only", "train_only"])
def test_phase_mixes_the_batch_with_the_errors(pivot, feedback):
    """The teachers get λ between the batch and samples that the students got wrong."""
    config = settings_of(pivot=pivot, feedback=feedback)
    logits, labels = jnp.array(logits_of(3)), jnp.array([0, 1, 2, 3, 4, 0])
    roles = orc.phase(config, batch_of(logits, labels), jax.random.key(1))
    (update, *_) = roles.updates
    lam, sample = update.mix
    students = [1, 2, 3] if pivot == 0 else np.flatnonzero(~roles.promoted)
    wrong = np.array(logits.argmax(axis=-1) != labels)[students]
    assert np.all(wrong.any(axis=0)[np.array(sample)])
    if feedback == "mixup":
        assert 0 < lam < 1
    else:
        assert lam == {"feedback_only": 0, "train_only": 1}[feedback]
    ce = losses.cross_entropy
    expected = lam * ce(logits, labels).mean(1) + (1 - lam) * ce(logits, labels[sample]).mean(1)
    np.testing.assert_allclose(update.loss(logits, logits, update.mix), expected, rtol=1e-5)
    teachers = np.array([True, False, False, False]) if pivot == 0 else roles.promoted
    np.testing.assert_array_equal(roles.updates[0].learners, teachers)
    assert roles.updates[0].at_most == 1
    np.testing.assert_allclose(roles.metrics["asked"].sum(), 1, rtol=1e-6)


def test_a_group_that_errs_nowhere_works():
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    logits = jnp.stack([8.0 * jax.nn.one_hot(labels, 5)] * 3)
    for pivot in (0, None):
        config = settings_of(pivot=pivot)
        roles = orc.phase(config, batch_of(logits, labels), jax.random.key(0))
        assert sorted(np.array(roles.updates[0].mix[1])) == list(range(6))
        assert np.all(np.isfinite(peer_losses(config, logits, labels, roles)))
        assert np.all(roles.metrics["asked"] == 0)


@pytest.mark.parametrize(
    "change",
    [
        {"num_temporary": 3},
        {"num_temporary": -1},
        {"pivot": None, "num_temporary": 4},
        {"pivot": None, "num_temporary": 0},
        {"pivot": 4},
        {"pivot": "x"},
        {"temperature": 0.0},
        {"beta": 1.5},
        {"mixup_alpha": 0.0},
        {"teaching": "solo"},
        {"promotion": "best"},
        {"feedback": "none"},
    ],
)
def test_settings_that_make_no_sense(change):
    networks = ["resnet8"] * 4
    methods.check(settings_of(), networks)
    with pytest.raises(UserError, match=f"method.{[*change][-1]} is .* allowed"):
        methods.check(settings_of(**change), networks)
