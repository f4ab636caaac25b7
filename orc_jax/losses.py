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


def standardized(logits: Float[Array, "*P B C"]) -> Float[Array, "*P B C"]:
    """Compute (z − mean_c z) / (1e-7 + std_c z) of every image, with the deviation of C − 1.

    Logit standardization (Sun et al., CVPR 2024, arXiv 2403.01427); gradient flows through it.
    Where all logits of an image are equal, it is finite, but as large as the 1e-7 makes it.

    Examples:
      >>> print(standardized(jnp.array([[10.0, 30.0, 50.0]])).round(3))
      [[-1.  0.  1.]]
    """
    centred = logits - logits.mean(axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    return centred / (1e-7 + _root(variance))


def dkd(
    student: Float[Array, "*P B C"],
    teacher: Float[Array, "*#P B C"],
    labels: Int[Array, " B"],
    temperature: float,
    alpha: float,
    beta: float,
) -> Float[Array, "*P"]:
    """Compute T² mean_b ( α KL(b_t ‖ b_s) + β KL(p̂_t ‖ p̂_s) ) (Zhao et al., CVPR 2022).

    b = (p_y, 1 − p_y) of p = softmax(z/T), and p̂ is the softmax over the classes other than y
    (decoupled KD, arXiv 2203.08679). Of two classes there is but one other: this is α KD_T.

    Args:
      student: logits of one network or of P.
      teacher: logits of one teacher or one for each of the P.
      labels: y.
      temperature: T.
      alpha: α, weight of the class y against the others.
      beta: β, weight of the others among each other.

    Examples:
      >>> student, teacher = jnp.zeros((1, 3)), jnp.log(jnp.array([[0.5, 0.4, 0.1]]))
      >>> print(dkd(student, teacher, jnp.array([0]), 1.0, 1.0, 0.0))
      0.0589
    """
    is_label = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)

    def parts(z):
        z = z / temperature
        log_p = jax.nn.log_softmax(z)
        others = jax.nn.logsumexp(log_p, axis=-1, where=~is_label)
        of_label = jnp.sum(log_p, axis=-1, where=is_label)
        # The class y gets no share; a finite number in its place keeps gradients finite.
        return of_label, others, jnp.where(is_label, 0.0, log_p - others[..., None])

    (label_s, others_s, among_s), (label_t, others_t, among_t) = parts(student), parts(teacher)
    target = jnp.exp(label_t) * (label_t - label_s) + jnp.exp(others_t) * (others_t - others_s)
    rest = jnp.sum(jnp.exp(among_t) * (among_t - among_s), axis=-1, where=~is_label)
    return temperature**2 * (alpha * target + beta * rest).mean(axis=-1)


def dist(
    student: Float[Array, "*P B C"],
    teacher: Float[Array, "*#P B C"],
    temperature: float,
    beta: float,
    gamma: float,
) -> Float[Array, "*P"]:
    """Compute T² ( β (1 − mean_b ρ(p_b, q_b)) + γ (1 − mean_c ρ(p_·c, q_·c)) ).

    p and q are the softmax outputs of student and teacher and ρ is Pearson's correlation: over the
    classes of an image, and over the images of a class (DIST, Huang et al., NeurIPS 2022, arXiv
    2205.10536). It couples all images of the batch. A batch of one has no relations between images:
    its correlation counts as 0, with no gradient.

    Args:
      student: logits of one network or of P.
      teacher: logits of one teacher or one for each of the P.
      temperature: T.
      beta: β, weight of the relations between classes.
      gamma: γ, weight of the relations between images.

    Examples:
      >>> student = jnp.array([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
      >>> same, swapped = (dist(student, t, 1.0, 0.0, 1.0) for t in (student, student[::-1]))
      >>> print(abs(same.round(3)), swapped.round(3))
      0.0 2.0
    """
    p, q = jax.nn.softmax(student / temperature), jax.nn.softmax(teacher / temperature)

    def distance(axis):
        x, y = (z - z.mean(axis=axis, keepdims=True) for z in (p, q))
        norms = _root((x**2).sum(axis=axis)) * _root((y**2).sum(axis=axis))
        correlation = (x * y).sum(axis=axis) / (norms + 1e-8)
        return 1 - correlation.mean(axis=-1)

    return temperature**2 * (beta * distance(-1) + gamma * distance(-2))


def _root(square):
    """Compute the square root, with the gradient 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


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
