"""The compiled step: one pass per network, one compilation, who learns and who does not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal, tiny_config, tiny_data

from orc_jax import passes, peers
from orc_jax.data import batches
from orc_jax.prepare import prepare
from orc_jax.state import init_state, streams
from orc_jax.step import compile_steps


def other_images(setup):
    """The normalisation of a network that was trained on other images."""
    images = setup.images
    return images._replace(mean=images.mean + 0.2, std=1.5 * images.std)


def build(config, data=None, others=()):
    """(setup, state, train step, order of epoch 0) of a config; some peers began elsewhere."""
    setup = prepare(config, data or tiny_data())
    setup = setup.with_own_images(dict.fromkeys(others, other_images(setup)))
    state = init_state(*setup.state_args(), {})
    train_step, *_ = compile_steps(config, setup.group, setup.method)
    key = streams(config.seed)[1]
    order = batches.epoch_order(key, 0, len(setup.train_split.labels), config.batch_size)
    return setup, state, train_step, setup.on_mesh(jax.device_get(order))


def run(config, num_steps, data=None):
    """The state after some steps."""
    setup, state, train_step, order = build(config, data)
    for _ in range(num_steps):
        state = train_step(state, setup.train_split, order)
    return setup, state


def in_peer_order(setup, state):
    """The parameters of every peer, as a plain network, as one vector each."""
    stacks = jax.device_get(state.stacks)
    plain = [peers.plain_variables(setup.group.stacks, stacks, i) for i in range(setup.group.size)]
    return [
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(one["params"])]) for one in plain
    ]


def test_one_compilation_and_no_transfer():
    setup, state, train_step, order = build(tiny_config())
    with jax.transfer_guard("disallow"):
        for _ in range(4):
            state = train_step(state, setup.train_split, order)
    assert train_step._cache_size() == 1
    assert int(state.step) == 4


def test_the_transfer_guard_would_notice():
    setup, state, train_step, order = build(tiny_config())
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed"):
        train_step(state, setup.train_split, np.asarray(order))


def test_the_state_is_donated():
    setup, state, train_step, order = build(tiny_config())
    leaf = jax.tree.leaves(state.stacks[0].members.params)[0]
    train_step(state, setup.train_split, order)
    assert leaf.is_deleted()


def convolutions(networks, **method):
    """Number of convolutions in the compiled step."""
    _, state, train_step, order = build(config := tiny_config(networks, **method))
    split = prepare(config, tiny_data()).train_split
    text = train_step.lower(state, split, order).compile().as_text()
    assert "feature_group_count" not in text
    return len(re.findall(r" = \S+ convolution\(", text))


def test_each_network_runs_once_per_batch_and_weights():
    """Forward is 3 convolutions of `tiny`, backward 5 (the images need no gradient), besides its
    1×1 projection, which is a matrix product.

    Students: one pass each. Pivot: one on the mixed images, and one forward pass with its
    new weights. The temporary teacher: what the pivot has, besides its pass as a student. Without
    a pivot, one of three equal peers teaches at a time; of two networks, each runs as if it had the
    teacher.
    """
    forward, backward = 3, 5
    taught = forward + backward + forward
    before = {"pivot": 0, "temporary_teaches": "before_private"}
    assert convolutions(("tiny",) * 3, pivot=0) == 2 * (forward + backward) + 2 * taught
    assert convolutions(("tiny",) * 3, **before) == 2 * (forward + backward) + taught
    assert convolutions(("tiny",) * 3, pivot=None) == 3 * (forward + backward) + taught
    two = ("tiny", "tiny_wide")
    assert convolutions(two, pivot=None) == 2 * (forward + backward) + 2 * taught


def test_bfloat16_is_for_activations_alone():
    """Convolutions of bfloat16; the state and the metrics are of float32."""
    config = tiny_config(("tiny",) * 2, "dml")
    config.precision = "bfloat16"
    _, state, train_step, order = build(config)
    split = prepare(config, tiny_data()).train_split
    jaxpr = str(train_step.trace(state, split, order).jaxpr)
    convolutions = re.findall(r":(\w+)\[\S+\] = conv_general_dilated", jaxpr)
    assert convolutions and set(convolutions) == {"bf16"}
    types = {leaf.dtype for leaf in jax.tree.leaves((state.stacks, state.sums))}
    assert types == {jnp.dtype("float32")}
    after = jax.eval_shape(train_step, state, split, order)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)


def rounded_products(method, tf32=True, **changes):
    """Number of products and convolutions that a GPU computes from inputs rounded to TF32."""
    config = tiny_config(("tiny",) * 3, method, **changes)
    config.tf32 = tf32
    _, state, train_step, order = build(config)
    split = prepare(config, tiny_data()).train_split
    jaxpr = str(train_step.trace(state, split, order).jaxpr)
    products = re.findall(r"(?:dot_general|conv_general_dilated)\[(.*?)\n *\] ", jaxpr, re.DOTALL)
    assert len(products) > 10
    return sum("Precision.HIGHEST" not in settings for settings in products)


def test_networks_alone_may_round_to_tf32():
    """Gates, attention and losses have full float32; with `tf32=False` networks do too."""
    alone = rounded_products("ind")
    assert alone > 10
    assert rounded_products("okddip", form="network") == alone
    assert rounded_products("kdcl", target="linear") == alone
    assert rounded_products("okddip", tf32=False, form="network") == 0


def test_the_step_of_orc_has_no_loop():
    """A GPU waits for the host wherever a loop asks whether it has ended."""

    def loops(alpha):
        _, state, train_step, order = build(config := tiny_config(mixup_alpha=alpha))
        split = prepare(config, tiny_data()).train_split
        jaxpr = str(train_step.trace(state, split, order).jaxpr)
        return [name for name in ("while[", "scan[", "random_gamma") if name in jaxpr]

    assert loops(1.0) == []
    assert loops(0.5) == ["random_gamma"]  # of which the beta distribution is made


def test_bfloat16_is_near_float32():
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = tiny_config(("tiny",) * 2, "dml")
        config.precision = precision
        _, state = run(config, 3)
        losses[precision] = np.asarray(state.sums["loss"])
    assert (losses["bfloat16"] != losses["float32"]).any()
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)


def test_teachers_take_only_the_intensive_step():
    """Without mixup, a teacher's step is that of plain training on the batch."""
    _, before, _, _ = build(tiny_config(("pixels",) * 3, pivot=None))
    before = jax.device_get(before.stacks[0].members)
    config = tiny_config(("pixels",) * 3, pivot=None, promotion="fixed")
    config.optimizer.learning_rate = 0.0
    _, after = run(config, 1)
    assert_trees_equal(after.stacks[0].members.params, before.params)
    assert after.promotions.tolist() == [1, 0, 0]
    config.method.feedback = "train_only"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 0.0
    _, taught = run(config, 1)
    # Fixed to peer 0 and without mixup, its step is that of plain training on the batch.
    alone = tiny_config(("pixels",) * 3, pivot=None, promotion="fixed", beta=0.0, intensive=False)
    alone.optimizer.update(learning_rate=0.05, weight_decay=0.0)
    _, plain = run(alone, 1)
    teacher, same = (
        jax.tree.map(lambda x: np.asarray(x[0]), s.stacks[0].members.params)
        for s in (taught, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), teacher, same)


@pytest.mark.parametrize(
    "method",
    [
        {"intensive": False},
        {"private": False},
        {"group": False},
        {"teaching": "ensemble"},
        {"promotion": "fixed"},
        {"promotion": "random"},
        {"feedback": "feedback_only"},
        {"feedback": "train_only"},
        {"num_temporary": 0},
        {"num_temporary": 2},
        {"pivot": None, "num_temporary": 2},
        {"pivot": None, "intensive": False},
    ],
)
def test_every_ablation_trains(method):
    setup, state, train_step, order = build(tiny_config(("pixels",) * 4, **method))
    start = in_peer_order(setup, state)
    for _ in range(3):
        state = train_step(state, setup.train_split, order)
    promoted = method.get("num_temporary", 1)
    assert int(state.promotions.sum()) == 3 * promoted
    assert (np.asarray(state.failed_at) == -1).all()
    for before, after in zip(start, in_peer_order(setup, state), strict=True):
        assert np.abs(after - before).max() > 1e-3


def test_seed_decides_everything():
    config = tiny_config()
    _, one = run(config, 2)
    _, same = run(config, 2)
    assert_trees_equal(one.stacks, same.stacks)
    config.seed = 1
    setup, other = run(config, 2)
    assert np.abs(in_peer_order(setup, other)[1] - in_peer_order(setup, one)[1]).max() > 1e-2


def test_permuting_the_students_permutes_the_step():
    """Initial students in another order give the same students in that order."""
    order = jnp.array([2, 0, 1])
    config = tiny_config(feedback="train_only")  # draws of feedback go by position
    setup, state, train_step, batches_of_epoch = build(config)
    pivot, students = state.stacks
    permuted = state.replace(stacks=(pivot, peers.select(students, order)))
    permuted = jax.tree.map(jnp.copy, permuted)  # the step's state is donated
    results = [state, permuted]
    for _ in range(2):
        results = [train_step(s, setup.train_split, batches_of_epoch) for s in results]
    here, there = results
    np.testing.assert_array_equal(there.promotions[1:], here.promotions[1:][order])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[order], rtol=1e-3, atol=1e-5),
        there.stacks[1].members.params,
        here.stacks[1].members.params,
    )


def test_a_paused_peer_stays_bit_for_bit():
    setup, state, _, _ = build(tiny_config())
    stack, before = setup.group.stacks[1], state.stacks[1]

    def of_parts(change):
        return tuple(change(part) for part in (before.trunk, before.members))

    grads = of_parts(lambda part: jax.tree.map(jnp.ones_like, part.params))
    stats = of_parts(lambda part: jax.tree.map(lambda x: x + 1, part.stats))
    learns = jnp.array([True, False, True])
    after = passes.update(stack, before, grads, stats, state.step, learns, learns)
    assert_trees_equal(peers.select(after.members, 1), peers.select(before.members, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(0, abs(a[0] - b[0]).max()),
        after.members,
        before.members,
    )


def test_momentum_starts_at_zero_where_the_rate_drops():
    """Nesterov's update is then (1 + μ) times the new momentum, as in a new optimizer."""
    config = tiny_config(("pixels",), "ind")
    config.optimizer.update(schedule="step", decay_epochs=(1,), reset_at_decay=True)
    setup, state, train_step, order = build(config, tiny_data(train=80))
    assert len(order) == 5
    fresh = []
    for step in range(7):
        before = jax.device_get(state.stacks[0].members.params)
        state = train_step(state, setup.train_split, order)
        after = jax.device_get(state.stacks[0].members)
        rate = config.optimizer.learning_rate * (0.1 if step >= 5 else 1.0)
        moved = jax.tree.map(lambda a, b, rate=rate: (a - b) / rate, before, after.params)
        (momentum,) = [s.trace for s in after.opt_state if hasattr(s, "trace")]
        errors = jax.tree.map(lambda m, d: np.abs(1.9 * m - d).max(), momentum, moved)
        fresh.append(max(jax.tree.leaves(errors)) < 1e-4)
    assert fresh == [True, *[False] * 4, True, False]


def test_a_trunk_stays_bit_for_bit_where_no_branch_learns():
    setup, state, _, _ = build(tiny_config(("pixels",) * 3, "one"))
    (stack,), (before,) = setup.group.stacks, state.stacks
    grads = jax.tree.map(jnp.ones_like, (before.trunk.params, before.members.params))
    stats = before.trunk.stats, before.members.stats
    for learns in (jnp.zeros(3, bool), jnp.array([False, True, False])):
        after = passes.update(stack, before, grads, stats, state.step, learns, learns)
        leaf, old = (jax.tree.leaves(tree.trunk.params)[0] for tree in (after, before))
        assert bool((leaf == old).all()) != bool(learns.any())
