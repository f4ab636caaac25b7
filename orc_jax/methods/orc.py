"""ORC: online role change (ICCV 2023, arXiv 2206.01186).

Every iteration, on a batch x_t with labels y_t:

1. Rank: every network is evaluated on the batch, CE_i.            `phase`
2. Feedback: students ask for the samples F that they got wrong.   `draw_feedback`
3. Intensive teaching: the pivot teacher PT learns from batch
   and feedback samples, mixed up, and takes its step.             `intensive_teaching`
4. Role change: the k best students become temporary teachers TT.  `promote`
5. Private teaching: PT teaches every TT, which takes its step.    `private_teaching`
6. Group teaching: PT and every TT, all with their new weights,
   teach the other students.                                       `assign`, `loss`
7. Demotion: the next iteration ranks the students anew.           (nothing is kept)

`config.pivot` is the position of PT in the group. It is trained before the group, unless
`config.pretrained` is False (see pretraining.py). Without a pivot (`pivot=None`) the promoted peers
are the teachers, and they receive the intensive teaching. Switching a teaching off leaves plain
cross-entropy to the networks that it was for.

As an ablation of ours, `config.temporary_teaches="before_private"` lets every TT teach with the
logits that it was ranked by: private and group teaching then are one loss and one step, and no
network needs another pass for them.

Arrays are whole: P peers, the global batch of B images, C classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from orc_jax import losses
from orc_jax.data.mixing import draw_lambda
from orc_jax.errors import UserError
from orc_jax.methods import divergence
from orc_jax.methods.method import (
    Batch,
    Method,
    OrNone,
    Positions,
    Roles,
    TeacherUpdate,
    one_of,
)


def phase(config, batch: Batch, key) -> Roles:
    """Rank the group, change roles, and say what the teachers learn before they teach."""
    role_key, feedback_key, mixup_key = jax.random.split(key, 3)
    cross_entropy = losses.cross_entropy(batch.logits, batch.truth)
    roles = assign(config, promote(config, cross_entropy.mean(axis=1), role_key))
    updates, metrics = [], {}
    if config.intensive:
        pivot = jnp.asarray(is_pivot(config, len(cross_entropy)))
        teachers = roles.promoted if config.pivot is None else pivot
        wrong = batch.logits.argmax(axis=-1) != batch.labels
        feedback, asker = draw_feedback(feedback_key, cross_entropy, wrong, ~teachers)
        metrics["asked"] = (asker[:, None] == jnp.arange(len(cross_entropy))).mean(axis=0)
        updates.append(intensive_teaching(config, batch, teachers, feedback, mixup_key))
    if private_comes_first(config):
        updates.append(private_teaching(config, batch, roles.promoted))
    return roles._replace(updates=tuple(updates), metrics=metrics)


def feedback_share(
    cross_entropy: Float[Array, " P"], asks: Bool[Array, " P"]
) -> Float[Array, " P"]:
    """Compute the share of the feedback samples that each network asks for: softmax(CE)."""
    return jax.nn.softmax(jnp.where(asks, cross_entropy, -jnp.inf))


def draw_feedback(
    key,
    cross_entropy: Float[Array, "P B"],
    wrong: Bool[Array, "P B"],
    students: Bool[Array, " P"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Draw B feedback samples, which students got wrong and ask their teachers to study.

    Each slot goes to a student by its share, and then to one of the samples that it got wrong,
    uniformly. A student without errors passes its share on to the others. If no student has any,
    the samples are those of the batch, the highest loss first, and the asker is -1.

    Args:
      key: for the draws.
      cross_entropy: of every peer and image.
      wrong: which images each peer got wrong.
      students: which peers may ask.

    Returns:
      The positions of the samples in the batch, and for each the student that asked.
    """
    asker_key, sample_key = jax.random.split(key)
    batch = wrong.shape[1]
    errors = wrong.sum(axis=1)
    asks = students & (errors > 0)
    share = feedback_share(cross_entropy.mean(axis=1), asks)
    asker = jax.random.categorical(asker_key, jnp.log(share), shape=(batch,))

    wrong_first = jnp.argsort(~wrong, axis=1)
    nth = jax.random.randint(sample_key, (batch,), 0, jnp.maximum(errors[asker], 1))
    sample = wrong_first[asker, nth]

    hardest = jnp.argsort(-jnp.sum(cross_entropy * students[:, None], axis=0))
    anyone = asks.any()
    return jnp.where(anyone, sample, hardest), jnp.where(anyone, asker, -1)


def intensive_teaching(config, batch: Batch, teachers, feedback: Int[Array, " B"], key):
    """Teach the teachers what the students got wrong.

    L_I = λ H(y_t, PT(x̃)) + (1−λ) H(y_F, PT(x̃)), x̃ = λ x_t + (1−λ) x_F, λ ~ Beta(α, α)

    Args:
      config, batch: of the method.
      teachers: [P] bool, who is taught.
      feedback: positions of the samples F in the batch.
      key: for λ.

    Returns:
      A `TeacherUpdate`.
    """
    lam = {
        "mixup": draw_lambda(key, config.mixup_alpha),
        "feedback_only": jnp.float32(0),
        "train_only": jnp.float32(1),
    }[config.feedback]

    def loss(logits, group, mix):
        lam, feedback = mix
        on_batch = losses.cross_entropy(logits, batch.truth).mean(axis=-1)
        on_feedback = losses.cross_entropy(logits, batch.truth[feedback]).mean(axis=-1)
        return lam * on_batch + (1 - lam) * on_feedback

    pivot = is_pivot(config, len(teachers))
    return TeacherUpdate(
        "intensive",
        learners=teachers,
        among=np.ones_like(pivot) if config.pivot is None else pivot,
        at_most=config.num_temporary if config.pivot is None else 1,
        loss=loss,
        mix=(lam, feedback),
    )


def private_comes_first(config) -> bool:
    """Return whether a TT takes its step from PT before it teaches others."""
    taught = config.pivot is not None and config.private and config.num_temporary > 0
    return taught and config.group and config.temporary_teaches == "after_private"


def private_teaching(config, batch: Batch, promoted: Bool[Array, " P"]):
    """Teach every TT before it teaches: L_P = (1−β) CE_TT + β KD_T(TT, PT).

    Args:
      config, batch: of the method.
      promoted: who is a TT.

    Returns:
      A `TeacherUpdate`.
    """

    def loss(logits, group, mix):
        cross_entropy = losses.cross_entropy(logits, batch.truth).mean(axis=-1)
        distillation = divergence.between(config, logits, group[config.pivot], batch.labels)
        return (1 - config.beta) * cross_entropy + config.beta * distillation

    return TeacherUpdate(
        "private",
        learners=promoted,
        among=~is_pivot(config, len(promoted)),
        at_most=config.num_temporary,
        loss=loss,
    )


def promote(config, cross_entropy: Float[Array, " P"], key) -> Bool[Array, " P"]:
    """Choose the temporary teachers: the k students with the lowest cross-entropy.

    As ablations: always the first k students ("fixed"), or k random ones ("random").
    """
    score = {
        "rank": jnp.nan_to_num(cross_entropy, nan=jnp.finfo(jnp.float32).max),
        "fixed": jnp.arange(len(cross_entropy), dtype=jnp.float32),
        "random": jax.random.uniform(key, cross_entropy.shape),
    }[config.promotion]
    score = jnp.where(is_pivot(config, len(score)), jnp.inf, score)
    return jnp.argsort(jnp.argsort(score)) < config.num_temporary


def assign(config, promoted: Bool[Array, " P"]) -> Roles:
    """Say who learns from whom: every TT from PT (private), the others from both (group)."""
    pivot = jnp.array(is_pivot(config, len(promoted)))
    student = ~(promoted | pivot)
    private = promoted[:, None] & pivot[None, :] & config.private
    group = student[:, None] & (promoted | pivot)[None, :] & config.group
    teachers = promoted if config.pivot is None else pivot
    # Teachers that learn before they teach take their step there.
    learns = ~teachers if config.intensive else jnp.ones_like(pivot)
    if private_comes_first(config):
        learns &= ~promoted
    return Roles(learns, promoted, learns_from=private | group)


def loss(config, batch: Batch):
    """Compute the loss of every peer that has not had its step: group teaching, or cross-entropy.

    L_P = (1−β) CE_TT + β KD_T(TT, PT)
    L_i = (1−β) CE_i  + β ( KD_T(S_i, PT) + Σ_TT KD_T(S_i, TT) )
    """
    logits, beta = batch.logits, config.beta
    learns, promoted, learns_from = batch.roles[:3]
    cross_entropy = losses.cross_entropy(logits, batch.truth).mean(axis=1)
    if config.teaching == "individual":
        pairs = divergence.pairwise(config, logits, batch.labels)
        distillation = jnp.sum(learns_from * pairs, axis=1)
    else:
        weights = learns_from / jnp.maximum(learns_from.sum(axis=1, keepdims=True), 1)
        ensemble = jnp.einsum("ij,jbc->ibc", weights, jax.lax.stop_gradient(logits))
        distillation = divergence.between(config, logits, ensemble, batch.labels)

    is_taught = learns_from.any(axis=1)
    private, group = learns & is_taught & promoted, learns & is_taught & ~promoted
    terms = {
        "group_ce": group * (1 - beta) * cross_entropy,
        "group_kd": group * beta * distillation,
        "plain_ce": learns * ~is_taught * cross_entropy,
    }
    if not private_comes_first(config):
        terms["private_ce"] = private * (1 - beta) * cross_entropy
        terms["private_kd"] = private * beta * distillation
    return terms


def is_pivot(config, group_size: int) -> np.ndarray:
    """Return [P] bool, true for the pivot teacher."""
    return np.array([i == config.pivot for i in range(group_size)])


def check(config, networks: list[str]) -> None:
    """Raise `UserError` where the settings make no sense for a group of this size."""
    one_of(config, "teaching", ("individual", "ensemble"))
    one_of(config, "promotion", ("rank", "fixed", "random"))
    one_of(config, "feedback", ("mixup", "feedback_only", "train_only"))
    one_of(config, "temporary_teaches", ("after_private", "before_private"))
    group_size, pivot, k = len(networks), config.pivot, config.num_temporary
    if pivot is not None and (type(pivot) is not int or not 0 <= pivot < group_size):
        raise UserError(f"method.pivot is {pivot!r}, allowed: None or 0 to {group_size - 1}")
    students, least = (group_size, 1) if pivot is None else (group_size - 1, 0)
    if students <= least:
        raise UserError(f"orc needs a teacher and a student, config.peers has {group_size}")
    if not least <= k < students:
        raise UserError(
            f"method.num_temporary is {k}, allowed: {least} to {students - 1} "
            f"(fewer than the {students} networks that can be promoted)"
        )
    if not 0 <= config.beta <= 1:
        raise UserError(f"method.beta is {config.beta}, allowed: 0 to 1")
    if not config.pivot_rate >= 0:
        raise UserError(f"method.pivot_rate is {config.pivot_rate}, allowed: 0 or more")
    if not config.mixup_alpha > 0:
        raise UserError(f"method.mixup_alpha is {config.mixup_alpha}, allowed: above 0")


def titles(config, size: int) -> list[str]:
    """Return what each peer is called."""
    if config.pivot is None:
        return ["peer"] * size
    return np.where(is_pivot(config, size), "pivot teacher", "student").tolist()


METHOD = Method(
    settings={
        "pivot": OrNone(0),  # position of the pivot teacher, or None
        "pretrained": True,  # whether the pivot is trained before the group
        "pivot_rate": 1.0,  # factor on the pivot's learning rate within the group
        "num_temporary": 1,  # k
        "intensive": True,
        "private": True,
        "group": True,
        "teaching": "individual",
        "promotion": "rank",
        "feedback": "mixup",
        "temporary_teaches": "after_private",
        # Our defaults: the paper's public material names none.
        "temperature": 4.0,  # T
        "beta": 0.5,  # β
        "mixup_alpha": 1.0,  # α
        **divergence.SETTINGS,
    },
    loss=loss,
    phase=phase,
    check=check,
    positions=Positions(
        titles=titles,
        kept=lambda config, size: np.flatnonzero(~is_pivot(config, size)).tolist(),
        # A pivot that is taught first has its only pass on the batch afterwards.
        kinds=lambda config, size: np.where(
            is_pivot(config, size) & config.intensive, "later", "train"
        ).tolist(),
        pretrained=lambda config, size: (
            {} if config.pivot is None or not config.pretrained else {config.pivot: []}
        ),
        rates=lambda config, size: np.where(
            is_pivot(config, size), config.pivot_rate, 1.0
        ).tolist(),
    ),
)
