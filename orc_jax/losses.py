"""Cross-entropy and distillation losses: pure functions of logits.

Shapes: P peers, B images, C classes. Logits are unnormalised, labels are class
indices. Every loss is in nats.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "*P B C"], labels: Int[Array, " B"]) -> Float[Array, "*P B"]:
    """Softmax cross-entropy of every image."""
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def kd(
    student: Float[Array, "*P B C"], teacher: Float[Array, "*P B C"], temperature: float
) -> Float[Array, "*P"]:
    """KD_T(s, t) = T² · mean_b KL( softmax(t/T) ‖ softmax(s/T) ) (Hinton et al. 2015).

    Gradient flows through both arguments: stop it where a method's target is constant.
    """
    log_s = jax.nn.log_softmax(student / temperature)
    log_t = jax.nn.log_softmax(teacher / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_s, log_t).mean(-1)


def pairwise_kd(logits: Float[Array, "P B C"], temperature: float) -> Float[Array, "P P"]:
    """KD_T of every ordered pair of peers: entry [i, j] is KD_T(z_i, z_j), j the teacher.

    Targets are constant. KL(t ‖ s) is written as Σ t log t − Σ t log s, so that all pairs
    are one matrix product and nothing of size P·P·B·C is ever held.
    """
    log_s = jax.nn.log_softmax(logits / temperature)
    log_t = jax.lax.stop_gradient(log_s)
    t = jnp.exp(log_t)
    negative_entropy = jnp.sum(t * log_t, axis=(1, 2))
    cross = jnp.einsum("ibc,jbc->ij", log_s, t, precision="highest")
    return temperature**2 * (negative_entropy - cross) / logits.shape[1]
