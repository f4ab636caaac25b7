"""SwitOKD: switchable online distillation (ECCV 2022).

Teachers come first among the peers, then students; all start from scratch. Per batch and
pair of teacher t and student s a switch pauses the teacher (expert mode) or lets it learn
(learning mode). One teacher and one student, two teachers and one student (2T1S) or one
teacher and two students (1T2S) are the paper's cases; the rule below is the same for all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, Positions, Roles


class Switch(NamedTuple):
    """The switch of every pair, teachers × students; distances are L1, means over the batch."""

    gap: Float[Array, "T S"]  # G = ‖p_s − p_t‖
    delta: Float[Array, "T S"]  # δ = s_label − ε t_label
    expert: Bool[Array, "T S"]


def switch(
    teachers: Float[Array, "T B C"],
    students: Float[Array, "S B C"],
    truth: Int[Array, " B"] | Float[Array, "B C"],
) -> Switch:
    """Set the switches: expert mode iff G > δ and t_label < s_label.

    ε = exp(−t_label / (t_label + s_label)) in δ. Where both are 0, as for networks that fit the
    batch exactly, δ is 0: learning mode.
    """
    p_t, p_s = jax.nn.softmax(teachers)[:, None], jax.nn.softmax(students)[None]
    y = truth if truth.ndim == 2 else jax.nn.one_hot(truth, teachers.shape[-1])

    def distance(p, q):
        return jnp.abs(p - q).sum(axis=-1).mean(axis=-1)

    t_label, s_label, gap = distance(p_t, y), distance(p_s, y), distance(p_s, p_t)
    total = t_label + s_label
    epsilon = jnp.exp(-t_label / jnp.where(total > 0, total, 1.0))
    delta = s_label - epsilon * t_label
    return Switch(gap, delta, (gap > delta) & (t_label < s_label))


def phase(config, batch: Batch, key) -> Roles:
    """Pause every teacher that is the expert for all of its students."""
    count, size = config.teachers, len(batch.logits)
    found = switch(batch.logits[:count], batch.logits[count:], batch.truth)
    learning = ~found.expert  # [t, s]
    learns = jnp.concatenate([learning.any(axis=1), jnp.ones(size - count, bool)])
    # weights[i, j]: whether i learns from j. All peers learn from all others, with two exceptions:
    # a teacher does not learn from a student that it is the expert for, and not while it is paused.
    weights = learns[:, None] & ~jnp.eye(size, dtype=bool)
    weights = weights.at[:count, count:].set(learning)
    metrics = {
        f"{name}/{t}_{count + s}": values[t, s].astype(jnp.float32)
        for name, values in found._asdict().items()
        for t in range(count)
        for s in range(size - count)
    }
    return Roles(learns, learns_from=weights, metrics=metrics)


def loss(config, batch: Batch):
    """Compute CE_i + Σ_j KL(p_j ‖ p_i) over the peers j that i learns from.

    The targets are constant.
    """
    learns, weights = batch.roles.learns, batch.roles.learns_from
    pairs = divergence.pairwise(config, batch.logits, batch.labels)
    return {
        "ce": learns * losses.cross_entropy(batch.logits, batch.truth).mean(axis=1),
        "kd": jnp.sum(weights * pairs, axis=1),
    }


def check(config, networks):
    """Raise `UserError` without a teacher or without a student."""
    if not 1 <= config.teachers < len(networks):
        raise UserError(
            f"method.teachers is {config.teachers}, allowed: 1 to {len(networks) - 1} "
            f"(config.peers has {len(networks)}, teachers first, then students)"
        )


METHOD = Method(
    # How many of the peers, T.
    settings={"teachers": 1, "temperature": 1.0, **divergence.SETTINGS},
    loss=loss,
    phase=phase,
    check=check,
    positions=Positions(
        titles=lambda c, size: ["teacher"] * c.teachers + ["student"] * (size - c.teachers),
        kept=lambda c, size: list(range(c.teachers, size)),
    ),
)
