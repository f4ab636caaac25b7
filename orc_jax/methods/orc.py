"""ORC: online role change (ICCV 2023, arXiv 2206.01186).

Every iteration ranks the group, promotes the best students to temporary teachers, lets the
teachers study what the students got wrong (intensive teaching), and then has them teach
(private and group teaching). `pivot` is the position of the pivot teacher PT. Without one
(`pivot=None`) the promoted peers are the teachers, and receive the intensive teaching.

Switching a teaching off leaves plain cross-entropy to the networks that it was for.
Everything here is about whole arrays: P peers, the global batch of B images, C classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods.feedback import draw_feedback
from orc_jax.methods.method import Batch, Lesson, Method, Turn, one_of


def check(config, networks: list[str]) -> None:
    """Raises `UserError` where the settings make no sense for a group of this size."""
    one_of(config, "teaching", ("individual", "ensemble"))
    one_of(config, "promotion", ("rank", "fixed", "random"))
    one_of(config, "feedback", ("mixup", "feedback_only", "train_only"))
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
    if not config.mixup_alpha > 0:
        raise UserError(f"method.mixup_alpha is {config.mixup_alpha}, allowed: above 0")


def is_pivot(config, group_size: int) -> np.ndarray:
    """[P] bool, true for the pivot teacher."""
    return np.array([i == config.pivot for i in range(group_size)])


def phase(config, batch: Batch, key) -> Turn:
    """Rank, promote, and say what the teachers learn before they teach."""
    role_key, feedback_key, mixup_key = jax.random.split(key, 3)
    logits, truth = batch.logits, batch.truth
    pivot = is_pivot(config, len(logits))
    cross_entropy = losses.cross_entropy(logits, truth)

    promoted = promote(config, cross_entropy.mean(axis=1), role_key)
    turn = assign(config, promoted)
    if not config.intensive:
        return turn

    teachers = promoted if config.pivot is None else jnp.asarray(pivot)
    wrong = logits.argmax(axis=-1) != batch.labels
    feedback, asker = draw_feedback(feedback_key, cross_entropy, wrong, ~teachers)
    lam = {
        "mixup": jax.random.beta(mixup_key, config.mixup_alpha, config.mixup_alpha),
        "feedback_only": 0.0,
        "train_only": 1.0,
    }[config.feedback]

    def intensive_loss(logits):
        """L_I = λ H(y_t, PT(x̃)) + (1−λ) H(y_F, PT(x̃)) of every teacher."""
        on_batch = losses.cross_entropy(logits, truth).mean(axis=-1)
        on_feedback = losses.cross_entropy(logits, truth[feedback]).mean(axis=-1)
        return lam * on_batch + (1 - lam) * on_feedback

    lesson = Lesson(
        pupils=teachers,
        among=np.ones_like(pivot) if config.pivot is None else pivot,
        at_most=config.num_temporary if config.pivot is None else 1,
        mix=(lam, feedback),
        loss=intensive_loss,
    )
    asked = (asker[:, None] == jnp.arange(len(logits))).mean(axis=0)
    return turn._replace(lesson=lesson, metrics={"asked": asked})


def promote(config, cross_entropy: Float[Array, " P"], key) -> Bool[Array, " P"]:
    """The k students with the lowest cross-entropy.

    As ablations: always the first k students ("fixed"), or k random ones ("random").
    """
    score = {
        "rank": jnp.nan_to_num(cross_entropy, nan=jnp.finfo(jnp.float32).max),
        "fixed": jnp.arange(len(cross_entropy), dtype=jnp.float32),
        "random": jax.random.uniform(key, cross_entropy.shape),
    }[config.promotion]
    score = jnp.where(is_pivot(config, len(score)), jnp.inf, score)
    return jnp.argsort(jnp.argsort(score)) < config.num_temporary


def assign(config, promoted: Bool[Array, " P"]) -> Turn:
    """Private teaching: PT teaches every TT. Group teaching: PT and TT teach the others.

    `Turn.plan` is who was promoted and [P, P] who learns (row) from whom (column).
    """
    pivot = jnp.array(is_pivot(config, len(promoted)))
    student = ~(promoted | pivot)
    private = promoted[:, None] & pivot[None, :] & config.private
    group = student[:, None] & (promoted | pivot)[None, :] & config.group
    teachers = promoted if config.pivot is None else pivot
    # Teachers take their step from the intensive teaching instead.
    learns = ~teachers if config.intensive else jnp.ones_like(pivot)
    return Turn(learns, promoted, plan=(learns, promoted, private | group))


def loss(config, batch: Batch):
    """The loss of every peer: private teaching, group teaching, or cross-entropy alone.

    L_P = (1−β) CE_TT + β KD_T(TT, PT)
    L_i = (1−β) CE_i  + β ( KD_T(S_i, PT) + Σ_TT KD_T(S_i, TT) )
    """
    logits, (learns, promoted, teaches) = batch.logits, batch.plan
    cross_entropy = losses.cross_entropy(logits, batch.truth).mean(axis=1)
    if config.teaching == "individual":
        pairs = losses.pairwise_kd(logits, config.temperature)
        distillation = jnp.sum(teaches * pairs, axis=1)
    else:
        weights = teaches / jnp.maximum(teaches.sum(axis=1, keepdims=True), 1)
        ensemble = jnp.einsum("ij,jbc->ibc", weights, jax.lax.stop_gradient(logits))
        distillation = losses.kd(logits, ensemble, config.temperature)

    is_taught = teaches.any(axis=1)
    private, group = learns & is_taught & promoted, learns & is_taught & ~promoted
    beta = config.beta
    return {
        "private_ce": private * (1 - beta) * cross_entropy,
        "private_kd": private * beta * distillation,
        "group_ce": group * (1 - beta) * cross_entropy,
        "group_kd": group * beta * distillation,
        "plain_ce": learns * ~is_taught * cross_entropy,
    }


def describe(config, size: int) -> list[str]:
    """What to call each peer."""
    if config.pivot is None:
        return ["peer"] * size
    return np.where(is_pivot(config, size), "pivot teacher", "student").tolist()


METHOD = Method(
    settings={
        "pivot": 0,  # position of the pivot teacher, or None
        "num_temporary": 1,  # k
        "intensive": True,
        "private": True,
        "group": True,
        "teaching": "individual",
        "promotion": "rank",
        "feedback": "mixup",
        # Our defaults: the paper's public material names none.
        "temperature": 4.0,  # T
        "beta": 0.5,  # β
        "mixup_alpha": 1.0,  # α
    },
    may_be_none=("pivot",),
    loss=loss,
    phase=phase,
    check=check,
    describe=describe,
    kept=lambda config, size: np.flatnonzero(~is_pivot(config, size)).tolist(),
    # A pivot that is taught first has its only pass on the batch afterwards.
    kinds=lambda config, size: np.where(
        is_pivot(config, size) & config.intensive, "later", "train"
    ).tolist(),
)
