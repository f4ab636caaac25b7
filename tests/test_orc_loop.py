"""The compiled step of ORC against a plain loop: a network at a time, no stacks, no masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_data
from test_step import build

from orc_jax import models, peers
from orc_jax.data import batches
from orc_jax.methods import orc
from orc_jax.state import streams

STEPS = 10


def cross_entropy(logits, labels):
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()


def kd(student, teacher, temperature):
    """T² mean_b Σ_c p_t (log p_t − log p_s)."""
    teacher, student = (jax.nn.log_softmax(z / temperature) for z in (teacher, student))
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=1).mean()


class Peer:
    """A network with its SGD."""

    def __init__(self, name, variables, settings):
        self.module = models.create(name, 5)
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.momentum = jax.tree.map(jnp.zeros_like, self.params)
        self.settings = settings

    @partial(jax.jit, static_argnums=0)
    def _run(self, params, stats, images):
        variables = {"params": params, "batch_stats": stats}
        logits, updated = self.module.apply(variables, images, train=True, mutable="batch_stats")
        return logits, updated["batch_stats"]

    def logits(self, images):
        return self._run(self.params, self.stats, images)[0]

    def learn(self, images, loss):
        """Takes the step of a loss of the logits."""

        def total(params):
            logits, stats = self._run(params, self.stats, images)
            return loss(logits), stats

        gradient, self.stats = jax.grad(total, has_aux=True)(self.params)
        rate, mu = self.settings.learning_rate, self.settings.momentum
        decayed = jax.tree.map(
            lambda g, p: g + self.settings.weight_decay * p, gradient, self.params
        )
        self.momentum = jax.tree.map(lambda m, g: mu * m + g, self.momentum, decayed)
        self.params = jax.tree.map(
            lambda p, g, m: p - rate * (g + mu * m), self.params, decayed, self.momentum
        )


def plain_step(group, config, images, labels, key):
    """One iteration of ORC, as the paper describes it."""
    method = config.method
    _, feedback_key, mixup_key = jax.random.split(key, 3)
    candidates = [i for i in range(len(group)) if i != method.pivot]
    ranked_by = {i: group[i].logits(images) for i in candidates}
    ranking = sorted(candidates, key=lambda i: float(cross_entropy(ranked_by[i], labels)))
    temporary = ranking[: method.num_temporary]
    taught = temporary if method.pivot is None else [method.pivot]
    asking = [i for i in candidates if i not in taught]

    # The draws are those of the library; a pivot has no row that counts.
    rows = [ranked_by.get(i, jnp.zeros_like(ranked_by[candidates[0]])) for i in range(len(group))]
    losses = jnp.stack([-jax.nn.log_softmax(z)[jnp.arange(len(z)), labels] for z in rows])
    wrong = jnp.stack([z.argmax(axis=1) != labels for z in rows])
    asks = jnp.array([i in asking for i in range(len(group))])
    feedback, _ = orc.draw_feedback(feedback_key, losses, wrong, asks)
    lam = jax.random.uniform(mixup_key)

    def intensive(logits):
        return lam * cross_entropy(logits, labels) + (1 - lam) * cross_entropy(
            logits, labels[feedback]
        )

    def private(logits, pivot):
        distillation = kd(logits, pivot, method.temperature)
        return (1 - method.beta) * cross_entropy(logits, labels) + method.beta * distillation

    for i in taught:
        group[i].learn(lam * images + (1 - lam) * images[feedback], intensive)
    teaching = {i: group[i].logits(images) for i in taught}
    if method.pivot is not None:
        for i in temporary:
            group[i].learn(images, partial(private, pivot=teaching[method.pivot]))
            after = method.temporary_teaches == "after_private"
            teaching[i] = group[i].logits(images) if after else ranked_by[i]
    for i in asking:
        if i in temporary:
            continue

        def loss(logits):
            distillation = sum(kd(logits, z, method.temperature) for z in teaching.values())
            return (1 - method.beta) * cross_entropy(logits, labels) + method.beta * distillation

        group[i].learn(images, loss)
    return temporary


@pytest.mark.parametrize(
    "pivot, k, teaches",
    [
        (0, 1, "after_private"),
        (0, 2, "after_private"),
        (0, 1, "before_private"),
        (0, 2, "before_private"),
        (None, 1, "after_private"),
        (None, 2, "after_private"),
    ],
)
def test_ten_steps_are_those_of_a_plain_loop(pivot, k, teaches):
    config = tiny_config(pivot=pivot, num_temporary=k, temporary_teaches=teaches)
    setup, state, train_step, order = build(config, tiny_data(train=80))
    stacks = jax.device_get(state.stacks)
    group = [
        Peer(peer.model, peers.plain_variables(setup.group.stacks, stacks, i), config.optimizer)
        for i, peer in enumerate(config.peers)
    ]
    promotions = np.zeros(len(group), int)
    for step in range(STEPS):
        key = jax.random.fold_in(streams(config.seed)[2], step)
        augmentation_key, method_key, _ = jax.random.split(key, 3)
        positions = order[step % len(order)]
        changes = batches.draw_augmentation(augmentation_key, config.data, positions.shape)
        images = batches.take(setup.train_split, positions, changes, config.data.pad_mode)
        labels = setup.train_split.labels[positions]
        promotions[plain_step(group, config, images, labels, method_key)] += 1
        state = train_step(state, setup.train_split, order)

    assert state.promotions.tolist() == promotions.tolist()
    stacks = jax.device_get(state.stacks)
    for i, peer in enumerate(group):
        ours = peers.plain_variables(setup.group.stacks, stacks, i)
        for found, expected in ((ours["params"], peer.params), (ours["batch_stats"], peer.stats)):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
                found,
                expected,
            )
