"""Cross-entropy and distillation losses: pure functions of logits.

Shapes: P peers, B images, C classes. Logits are unnormalised, labels are class indices. Every loss
is in nats.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*P B C"], labels: Int[Array, " B"] | Float[Array, "B C"]
) -> Float[Array, "*P B"]:
    """Compute the softmax cross-entropy of every image.

    Args:
      logits: of one network, or of P.
      labels: the class of each image, or how much it is of each class.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
      >>> print(cross_entropy(logits, jnp.array([0, 2])))
      [0.6931 0.2231]
    """
    if labels.ndim == 2:
        return optax.losses.softmax_cross_entropy(logits, labels)
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def kd(
    student: Float[Array, "*P B C"], teacher: Float[Array, "*#P B C"], temperature: float
) -> Float[Array, "*P"]:
    """Compute KD_T(s, t) = T² · mean_b KL( softmax(t/T) ‖ softmax(s/T) ) (Hinton et al. 2015).

    Gradient flows through both arguments: stop it where a method's target is constant.

    Args:
      student: s, logits of one network or of P.
      teacher: t, logits of one teacher or one for each of the P.
      temperature: T.

    Examples:
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.9, 0.1]]))
      >>> print(kd(student, teacher, 1.0), kd(teacher, teacher, 4.0))
      0.3681 0.0
    """
    log_s = jax.nn.log_softmax(student / temperature)
    log_t = jax.nn.log_softmax(teacher / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_s, log_t).mean(-1)


def pairwise_kd(
    logits: Float[Array, "P B C"],
    temperature: float,
    constant_target: bool = True,
    floor: float = 0.0,
) -> Float[Array, "P P"]:
    """Compute KD_T of every ordered pair of peers: entry [i, j] is KD_T(z_i, z_j), j the teacher.

    KL(t ‖ s) is written as Σ t log t − Σ t log s, so that all pairs are one matrix product and
    nothing of size P·P·B·C is ever held.

    Args:
      logits: z.
      temperature: T.
      constant_target: whether no gradient flows into the teacher.
      floor: added to the student's probabilities before their logarithm.

    Examples:
      >>> logits = jnp.array([[[0.0, 0.0]], [[2.0, 0.0]]])
      >>> print(pairwise_kd(logits, 1.0))
      [[0. 0.3278]
       [0.4338 0. ]]
    """
    log_s = jax.nn.log_softmax(logits / temperature)
    log_t = jax.lax.stop_gradient(log_s) if constant_target else log_s
    t = jnp.exp(log_t)
    negative_entropy = jnp.sum(t * log_t, axis=(1, 2))
    if floor:
        log_s = jnp.logaddexp(log_s, jnp.log(floor))
    cross = jnp.einsum("ibc,jbc->ij", log_s, t, precision="highest")
    return temperature**2 * (negative_entropy - cross) / logits.shape[1]


def ramp(epoch: Int[Array, ""] | int, length: int) -> Float[Array, ""] | float:
    """Compute exp(−5 (1 − clip(e, 0, L)/L)²): how fast the teaching sets in; L = 0 means 1.

    Args:
      epoch: e, counted from 0.
      length: L, in epochs.

    Examples:
      >>> [round(float(ramp(epoch, 80)), 4) for epoch in (0, 40, 80, 300)]
      [0.0067, 0.2865, 1.0, 1.0]
      >>> ramp(0, 0)
      1.0
    """
    if not length:
        return 1.0
    return jnp.exp(-5.0 * (1 - jnp.clip(epoch, 0, length) / length) ** 2)


def mean_of_others(logits: Float[Array, "P B C"]) -> Float[Array, "P B C"]:
    """Compute for every peer the mean of all others' logits.

    Examples:
      >>> print(mean_of_others(jnp.array([[[3.0]], [[5.0]], [[7.0]]])).ravel())
      [6. 5. 4.]
    """
    return (logits.sum(axis=0) - logits) / (len(logits) - 1)


def ensemble(log_probs: Float[Array, "P B C"]) -> Float[Array, "B C"]:
    """Compute the logarithm of the mean of the peers' softmax outputs.

    Args:
      log_probs: the logarithms of these outputs.

    Examples:
      >>> log_probs = jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]]]))
      >>> print(jnp.exp(ensemble(log_probs)))
      [[0.6 0.4]]
    """
    return jax.nn.logsumexp(log_probs, axis=0, b=1 / len(log_probs))


def diversity(logits: Float[Array, "P B C"]) -> Float[Array, " B"]:
    """Compute the mean L2 distance between the softmax outputs of two peers of the group.

    This is how OKDDip measures diversity (arXiv 1912.00350). For one peer it is 0.

    Examples:
      >>> logits = jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]]]))
      >>> print(diversity(logits))
      [0.5657]
    """
    p = jax.nn.softmax(logits)
    pairs = [(i, j) for i in range(len(p)) for j in range(i)]
    if not pairs:
        return jnp.zeros(logits.shape[1])
    distances = [jnp.linalg.norm(p[i] - p[j], axis=-1) for i, j in pairs]
    return sum(distances, jnp.zeros(())) / len(distances)
