"""Every method's loss: the reference programs' numbers, closed forms, stopped gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from orc_jax import losses, methods
from orc_jax.errors import UserError
from orc_jax.methods import kdcl, switokd
from orc_jax.methods.method import Batch
from orc_jax.models.network import Outputs

GOLDEN = golden("methods")


def config_of(name, **changes):
    config = methods.defaults(name)
    config.update(changes)
    return config


def batch_of(logits, labels, **fields):
    """A batch of these logits; fields of `Outputs` or of `Batch` beside them."""
    own = {name: fields.pop(name) for name in ("features", "trunk", "auxiliary") if name in fields}
    return Batch(Outputs(logits, **own), jnp.asarray(labels), **fields)


def loss_and_gradient(name, config, logits, labels, **fields):
    """Total loss, and gradients for the logits and for every other field, given as arrays."""
    method = methods.get(name)
    fields = {"logits": jnp.asarray(logits), **fields}

    def total(fields):
        batch = batch_of(labels=labels, **fields)
        if method.phase:
            roles = method.phase(config, jax.lax.stop_gradient(batch), jax.random.key(0))
            batch = batch._replace(roles=roles)
        return sum(jnp.sum(term) for term in method.loss(config, batch).values())

    return jax.value_and_grad(total)(fields)


def cases(pattern):
    """(inputs, match, case) of every golden case whose name matches."""
    found = [
        (batch["inputs"], match, case)
        for batch in GOLDEN["batches"]
        for name, case in batch["cases"].items()
        if (match := re.fullmatch(pattern, name))
    ]
    assert found
    return [pytest.param(*one, id=f"{one[1][0]}-{i}") for i, one in enumerate(found)]


def arrays(inputs):
    return np.array(inputs["logits"], np.float32), np.array(inputs["labels"])


def compare(loss, gradient, case):
    np.testing.assert_allclose(loss, case["loss"], rtol=2e-5)
    np.testing.assert_allclose(gradient, case["dlogits"], rtol=1e-4, atol=3e-6)


NUMBER = r"(\d+(?:\.\d+)?)"


@pytest.mark.parametrize("inputs, match, case", cases("ind"))
def test_golden_ind(inputs, match, case):
    loss, gradient = loss_and_gradient("ind", config_of("ind"), *arrays(inputs))
    compare(loss, gradient["logits"], case)


@pytest.mark.parametrize(
    "inputs, match, case", cases(rf"kd_alpha{NUMBER}_T{NUMBER}_student(\d+)_teacher(\d+)")
)
def test_golden_kd(inputs, match, case):
    logits, labels = arrays(inputs)
    student, teacher = int(match[3]), int(match[4])
    config = config_of("kd", teacher=1, alpha=float(match[1]), temperature=float(match[2]))
    loss, gradient = loss_and_gradient("kd", config, logits[[student, teacher]], labels)
    of_all = np.zeros_like(logits)
    of_all[student] = gradient["logits"][0]
    compare(loss, of_all, case)
    assert not np.any(gradient["logits"][1])


@pytest.mark.parametrize("inputs, match, case", cases(rf"dml_pairwise_T{NUMBER}(_stopped)?"))
def test_golden_dml(inputs, match, case):
    config = config_of("dml", temperature=float(match[1]), constant_target=bool(match[2]))
    loss, gradient = loss_and_gradient("dml", config, *arrays(inputs))
    compare(loss, gradient["logits"], case)


@pytest.mark.parametrize("inputs, match, case", cases(rf"kdcl_(\w+?)_T{NUMBER}_lambda{NUMBER}"))
def test_golden_kdcl(inputs, match, case):
    config = config_of("kdcl", target=match[1], temperature=float(match[2]), weight=float(match[3]))
    loss, gradient = loss_and_gradient("kdcl", config, *arrays(inputs))
    compare(loss, gradient["logits"], case)


@pytest.mark.parametrize("inputs, match, case", cases(rf"cl_ilr_T{NUMBER}_w{NUMBER}"))
def test_golden_cl_ilr(inputs, match, case):
    config = config_of("cl_ilr", temperature=float(match[1]), alpha=float(match[2]), ramp_epochs=0)
    loss, gradient = loss_and_gradient("cl_ilr", config, *arrays(inputs))
    compare(loss, gradient["logits"], case)


@pytest.mark.parametrize("inputs, match, case", cases(rf"one_T{NUMBER}_w{NUMBER}"))
def test_golden_one(inputs, match, case):
    config = config_of("one", temperature=float(match[1]), alpha=float(match[2]), ramp_epochs=0)
    gate = jnp.array(case["extra"]["gate_pre"], jnp.float32)
    loss, gradient = loss_and_gradient("one", config, *arrays(inputs), own_output=gate)
    compare(loss, gradient["logits"], case)
    np.testing.assert_allclose(
        gradient["own_output"], case["dextra"]["gate_pre"], rtol=1e-4, atol=3e-6
    )


@pytest.mark.parametrize("inputs, match, case", cases(rf"okddip_T{NUMBER}_w{NUMBER}"))
def test_golden_okddip(inputs, match, case):
    config = config_of("okddip", temperature=float(match[1]), alpha=float(match[2]), ramp_epochs=0)
    own = tuple(jnp.array(case["extra"][name], jnp.float32) for name in ("query", "key"))
    loss, gradient = loss_and_gradient("okddip", config, *arrays(inputs), own_output=own)
    compare(loss, gradient["logits"], case)
    for got, name in zip(gradient["own_output"], ("query", "key"), strict=True):
        np.testing.assert_allclose(got, case["dextra"][name], rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("inputs, match, case", cases("dcm"))
def test_golden_dcm(inputs, match, case):
    heads = jnp.array(case["extra"]["heads"], jnp.float32)  # [network, head, B, C]
    loss, gradient = loss_and_gradient(
        "dcm",
        config_of("dcm"),
        heads[:, -1],
        inputs["labels"],
        auxiliary=heads[:, :-1].swapaxes(1, 2),
    )
    np.testing.assert_allclose(loss, case["loss"], rtol=2e-5)
    expected = np.array(case["dextra"]["heads"])
    auxiliary = gradient["auxiliary"].swapaxes(1, 2)
    np.testing.assert_allclose(auxiliary, expected[:, :-1], rtol=1e-4, atol=3e-6)
    np.testing.assert_allclose(gradient["logits"], expected[:, -1], rtol=1e-4, atol=3e-6)


SWITCHES = [
    pytest.param(batch["inputs"]["labels"], case, id=f"{i}-{j}")
    for i, batch in enumerate(GOLDEN["batches"])
    for j, case in enumerate(batch["cases"]["switokd_1t1s"]["cases"])
]


@pytest.mark.parametrize("labels, case", SWITCHES)
def test_golden_switokd(labels, case):
    config, labels = config_of("switokd"), jnp.array(labels)
    z = jnp.array([case["teacher"], case["student"]], jnp.float32)
    found = switokd.switch(z[:1], z[1:], labels)
    np.testing.assert_allclose(found.gap[0, 0], case["gap"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.delta[0, 0], case["delta"], rtol=2e-5, atol=1e-6)
    assert bool(found.expert[0, 0]) == case["expert"]

    roles = switokd.phase(config, batch_of(z, labels), jax.random.key(0))
    assert roles.learns.tolist() == [not case["expert"], True]
    terms = methods.get("switokd").loss(config, batch_of(z, labels, roles=roles))
    teacher, student = terms["ce"] + terms["kd"]
    np.testing.assert_allclose(student, case["loss_student"], rtol=2e-5)
    # In expert mode the file has the loss that the teacher does not learn from.
    of_teacher = losses.cross_entropy(z[0], labels).mean() + losses.kd(z[0], z[1], 1.0)
    np.testing.assert_allclose(of_teacher, case["loss_teacher"], rtol=2e-5)
    np.testing.assert_allclose(teacher, 0 if case["expert"] else of_teacher, rtol=2e-5)
    _, gradient = loss_and_gradient("switokd", config, z, labels)
    np.testing.assert_allclose(gradient["logits"][1], case["dstudent"], rtol=1e-4, atol=3e-6)
    np.testing.assert_allclose(gradient["logits"][0], case["dteacher"], rtol=1e-4, atol=3e-6)


def test_no_golden_case_is_passed_over():
    """Every name in the file is one that a test here, in test_orc or in test_losses reads."""
    known = "ind|kd_alpha.*|kl_T.*|dml_pairwise_.*|kdcl_.*|cl_ilr_.*|one_.*|okddip_.*|dcm|orc_k.*"
    for batch in GOLDEN["batches"]:
        for name in batch["cases"]:
            assert re.fullmatch(f"{known}|switokd_1t1s", name), name


def test_the_golden_switches_are_of_both_modes():
    assert {case["expert"] for _, case in [one.values for one in SWITCHES]} == {True, False}


def test_golden_ramp():
    for epoch, weight in GOLDEN["consistency_weight"].items():
        np.testing.assert_allclose(losses.ramp(int(epoch), 80), weight, rtol=1e-5)
    assert losses.ramp(3, 0) == 1


# --- Gradients that must not flow ---


def random_logits(seed, peers=4, batch=6, classes=5):
    rng = np.random.default_rng(seed)
    return jnp.array(rng.normal(0, 2, (peers, batch, classes)), jnp.float32)


LABELS = jnp.array([0, 1, 2, 3, 4, 0])


def gradient_of_peer(name, config, peer, **fields):
    """Gradient for all logits [P, B, C] of one peer's own loss."""
    method = methods.get(name)

    def own_loss(z):
        batch = batch_of(z, LABELS, **fields)
        if method.phase:
            roles = method.phase(config, jax.lax.stop_gradient(batch), jax.random.key(0))
            batch = batch._replace(roles=roles)
        return sum(term[peer] for term in method.loss(config, batch).values() if term.ndim)

    return jax.grad(own_loss)(random_logits(7))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("ind", {}),
        ("kd", {}),
        ("dml", {}),
        ("dml", {"teaching": "ensemble"}),
        *[("kdcl", {"target": target}) for target in kdcl.TARGETS],
        ("switokd", {}),
        ("switokd", {"teachers": 2}),
        ("orc", {}),
        ("orc", {"pivot": None, "teaching": "ensemble"}),
    ],
)
def test_constant_targets_get_no_gradient(name, changes):
    """A peer's own loss has a gradient for its own logits only: exactly zero for the others."""
    config = config_of(name, **changes)
    fields = {"memory": jnp.full(4, 0.25)} if name == "kdcl" else {}
    for peer in range(4):
        gradient = gradient_of_peer(name, config, peer, **fields)
        assert not np.any(np.delete(gradient, peer, axis=0)), peer


def test_dcm_targets_are_constant():
    config = config_of("dcm")
    auxiliary = random_logits(1, peers=4 * 2).reshape(4, 2, 6, 5).swapaxes(1, 2)
    for peer in range(4):
        gradient = gradient_of_peer("dcm", config, peer, auxiliary=auxiliary)
        assert np.any(gradient[peer])
        assert not np.any(np.delete(gradient, peer, axis=0))


@pytest.mark.parametrize("name", ["one", "cl_ilr", "okddip"])
def test_targets_that_gradient_flows_through(name):
    own = {"one": random_logits(0)[0, :, :4], "cl_ilr": None}.get(
        name, (random_logits(1, 6, 3, 2), random_logits(2, 6, 3, 2))
    )
    gradient = gradient_of_peer(name, config_of(name, ramp_epochs=0), 0, own_output=own)
    assert np.all(np.abs(gradient[1:3]).max(axis=(1, 2)) > 1e-4)


# --- What no golden file has ---


def test_dml_of_two_peers_teaches_both_ways_alike():
    """With P = 2 the ensemble of the others is the other."""
    z = random_logits(0, peers=2)
    one = loss_and_gradient("dml", config_of("dml"), z, LABELS)
    other = loss_and_gradient("dml", config_of("dml", teaching="ensemble"), z, LABELS)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[1]["logits"], other[1]["logits"], rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0.2, 4))
def test_linear_target_is_the_best_convex_combination(seed, peers, spread):
    """No worse than SciPy's constrained optimiser from the same start, and on the simplex."""
    z = random_logits(seed, peers) * spread

    def cross_entropy(w):
        return float(losses.cross_entropy(jnp.einsum("p,pbc->bc", jnp.array(w), z), LABELS).mean())

    w = np.array(kdcl.linear_weights(z, LABELS))
    assert w.min() >= 0 and w.sum() == pytest.approx(1, abs=1e-5)
    reference = scipy.optimize.minimize(
        cross_entropy,
        np.full(peers, 1 / peers),
        jac=lambda w: np.array(
            jax.grad(lambda w: losses.cross_entropy(jnp.einsum("p,pbc->bc", w, z), LABELS).mean())(
                jnp.array(w, jnp.float32)
            ),
            float,
        ),
        bounds=[(0, 1)] * peers,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
    )
    assert cross_entropy(w) <= cross_entropy(np.array(reference.x, np.float32)) + 2e-3


def test_general_weights_solve_the_covariance():
    """Two independent peers of unequal error: weights inversely to the variances."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 4000)
    noisy = [4 * np.eye(5)[labels] + rng.normal(0, spread, (4000, 5)) for spread in (0.5, 2.0)]
    logits = jnp.array(np.stack(noisy), jnp.float32)
    weights = kdcl.general_weights(config_of("kdcl"), logits, jnp.array(labels))
    errors = np.array(jax.nn.softmax(logits)) - np.eye(5)[labels]
    covariance = np.einsum("inc,jnc->ij", errors, errors) / 4000
    expected = np.linalg.solve(covariance, np.ones(2))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-2)
    assert weights[0] > weights[1] and weights.sum() == pytest.approx(1, abs=1e-5)
    same = kdcl.general_weights(config_of("kdcl"), jnp.stack([logits[0]] * 2), jnp.array(labels))
    np.testing.assert_allclose(same, [0.5, 0.5], rtol=1e-3)


def test_switokd_with_three_networks():
    """Every pair has its own switch; what each teacher then learns, by the paper's cases."""
    one_hot = jax.nn.one_hot(LABELS, 5)
    strong, weak = 6 * one_hot, 9 * jax.nn.one_hot((LABELS + 1) % 5, 5)  # right, wrong
    kl = losses.pairwise_kd

    # 2T1S: the strong teacher is paused, the other one (weaker than the student) learns.
    z = jnp.stack([strong, 7 * weak / 6, weak])
    config = config_of("switokd", teachers=2)
    roles = switokd.phase(config, batch_of(z, LABELS), jax.random.key(0))
    assert roles.learns.tolist() == [False, True, True]
    terms = methods.get("switokd").loss(config, batch_of(z, LABELS, roles=roles))
    np.testing.assert_allclose(terms["kd"][0], 0)
    np.testing.assert_allclose(terms["ce"][0], 0)
    np.testing.assert_allclose(terms["kd"][1], kl(z, 1.0)[1, 0] + kl(z, 1.0)[1, 2], rtol=1e-5)
    np.testing.assert_allclose(terms["kd"][2], kl(z, 1.0)[2, 0] + kl(z, 1.0)[2, 1], rtol=1e-5)

    # 1T2S: expert for the weak student alone, so the teacher learns CE and from the other.
    z = jnp.stack([strong, weak, 6.2 * one_hot])
    config = config_of("switokd", teachers=1)
    roles = switokd.phase(config, batch_of(z, LABELS), jax.random.key(0))
    assert roles.learns.all()
    assert float(roles.metrics["expert/0_1"]) == 1 and float(roles.metrics["expert/0_2"]) == 0
    terms = methods.get("switokd").loss(config, batch_of(z, LABELS, roles=roles))
    ce = losses.cross_entropy(z, LABELS).mean(axis=1)
    np.testing.assert_allclose(terms["ce"], ce, rtol=1e-5)
    np.testing.assert_allclose(terms["kd"][0], kl(z, 1.0)[0, 2], rtol=1e-4, atol=1e-7)

    # Expert for both: paused altogether.
    z = jnp.stack([strong, weak, weak])
    roles = switokd.phase(config, batch_of(z, LABELS), jax.random.key(0))
    assert roles.learns.tolist() == [False, True, True]


def test_diversity_is_the_mean_pairwise_distance():
    z = random_logits(3, peers=3)
    p = np.array(jax.nn.softmax(z))
    pairs = [np.linalg.norm(p[i] - p[j], axis=-1) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(losses.diversity(z), np.mean(pairs, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(losses.diversity(z[:1]), np.zeros(6))


@pytest.mark.parametrize(
    "name, networks, changes, message",
    [
        ("kd", ["a"], {}, "kd needs two networks or more"),
        ("kd", ["a", "a"], {"teacher": 2}, r"method\.teacher is 2, allowed: 0 to 1"),
        ("kd", ["a", "a"], {"alpha": -1.0}, r"method\.alpha is -1.0, allowed: 0 or more"),
        ("dml", ["a"], {}, "dml needs two networks"),
        ("dml", ["a", "a"], {"temperature": 0.0}, r"method\.temperature is 0.0, allowed: above 0"),
        ("dml", ["a", "a"], {"teaching": "x"}, r"method\.teaching is 'x', allowed: individual"),
        ("kdcl", ["a", "a"], {"target": "best"}, r"method\.target is 'best', allowed: naive"),
        ("kdcl", ["a", "a"], {"target": "general", "held_out": 0.0}, "held_out is 0.0"),
        ("one", ["a", "b"], {}, "one needs equal networks, config.peers has a, b"),
        ("cl_ilr", ["a", "b"], {}, "cl_ilr needs equal networks"),
        ("cl_ilr", ["a", "a"], {"ramp_epochs": -1}, r"method\.ramp_epochs is -1"),
        ("okddip", ["a", "a"], {}, "okddip needs two auxiliary peers and a leader"),
        ("okddip", ["a", "a", "b"], {}, "okddip needs equal networks"),
        ("okddip", ["a", "b", "a"], {"form": "network"}, "okddip needs equal networks"),
        ("okddip", ["a"] * 3, {"form": "tree"}, r"method\.form is 'tree', allowed: branch, net"),
        ("dcm", ["a"], {}, "dcm needs two networks"),
        ("switokd", ["a", "a"], {"teachers": 2}, r"method\.teachers is 2, allowed: 1 to 1"),
    ],
)
def test_settings_that_make_no_sense(name, networks, changes, message):
    with pytest.raises(UserError, match=message):
        methods.check(config_of(name, **changes), networks)


def test_okddip_as_networks_may_have_another_leader():
    methods.check(config_of("okddip", form="network"), ["a", "a", "b"])


def test_networks_that_fit_a_batch_exactly_are_in_learning_mode():
    """Both distances are 0, and so is δ."""
    labels = jnp.zeros(6, int)
    certain = jnp.where(jnp.arange(5) == 0, 200.0, 0.0) * jnp.ones((1, 6, 1))
    found = switokd.switch(certain, certain, labels)
    assert found.delta.tolist() == [[0.0]] and not found.expert.any()
