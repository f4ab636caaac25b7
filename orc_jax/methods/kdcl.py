"""KDCL: collaborative learning (CVPR 2020). Every peer sees its own augmentation of the same
images; one target, made of all peers' logits, teaches them all.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Memory, Method, Needs, at_least_two, one_of

TARGETS = ("naive", "linear", "minlogit", "general")


def loss(config, batch: Batch):
    """Compute CE_p + λ KD_T(z_p, t) with one constant target t."""
    z, y = batch.logits, batch.truth
    fixed = jax.lax.stop_gradient(z)
    target = {
        "naive": lambda: naive(fixed, y),
        "linear": lambda: jnp.einsum("p,pbc->bc", linear_weights(fixed, y), fixed),
        "minlogit": lambda: minlogit(fixed, batch.labels),
        "general": lambda: jnp.einsum("p,pbc->bc", batch.memory, fixed),
    }[config.target]()
    return {
        "ce": losses.cross_entropy(z, y).mean(axis=1),
        "kd": config.weight * divergence.between(config, z, target, batch.labels),
    }


def naive(z: Float[Array, "P B C"], y: Array) -> Float[Array, "B C"]:
    """Return for each image the logits of the peer with the lowest cross-entropy.

    Args:
      z: logits.
      y: `Batch.truth`.
    """
    best = losses.cross_entropy(z, y).argmin(axis=0)
    return jnp.take_along_axis(z, best[None, :, None], axis=0)[0]


def minlogit(z: Float[Array, "P B C"], y: Int[Array, " B"]) -> Float[Array, "B C"]:
    """Compute t_c = min_p (z_pc − z_py): the least margin of any peer."""
    of_label = jnp.take_along_axis(z, y[None, :, None], axis=-1)
    return (z - of_label).min(axis=0)


def linear_weights(z: Float[Array, "P B C"], y: Array, steps: int = 200):
    """Find the convex combination w [P] of the logits with the lowest cross-entropy on the batch.

    This is accelerated projected gradient descent on the simplex. The problem is convex, and its
    curvature is at most the mean over images of Σ_p ¼ (range of z_p)².

    Args:
      z: logits.
      y: `Batch.truth`.
      steps: of the descent.
    """

    def cross_entropy(w):
        return losses.cross_entropy(jnp.einsum("p,pbc->bc", w, z), y).mean()

    rate = 1 / jnp.maximum(0.25 * jnp.square(jnp.ptp(z, axis=-1)).mean(axis=1).sum(), 1e-6)

    def step(i, carry):
        w, momentum = carry
        new = optax.projections.projection_simplex(
            momentum - rate * jax.grad(cross_entropy)(momentum)
        )
        return new, new + i / (i + 3) * (new - w)

    start = jnp.full(len(z), 1 / len(z))
    return jax.lax.fori_loop(0, steps, step, (start, start))[0]


def general_weights(config, logits: Float[Array, "P N C"], labels: Int[Array, " N"]):
    """Compute the weights C⁻¹1 / (1ᵀC⁻¹1) [P], C the covariance of the peers' errors.

    C_ij = mean_n (p_i − y)·(p_j − y), where p is the softmax output and y one-hot. A ridge of 10⁻⁴
    of the mean variance keeps C invertible for peers that make the same errors.

    Args:
      config: of the method.
      logits, labels: of the held-out images, in eval mode.
    """
    errors = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    covariance = jnp.einsum("inc,jnc->ij", errors, errors, precision="highest") / len(labels)
    ridge = 1e-4 * jnp.trace(covariance) / len(logits) + 1e-12
    weights = jnp.linalg.solve(covariance + ridge * jnp.eye(len(logits)), jnp.ones(len(logits)))
    return weights / weights.sum()


def check(config, networks):
    """Raise `UserError` for an unknown target, or without the held-out images that it needs."""
    at_least_two("kdcl", networks)
    one_of(config, "target", TARGETS)
    if config.target == "general" and not 0 < config.held_out < 1:
        raise UserError(f"method.held_out is {config.held_out}, allowed: above 0, below 1")


METHOD = Method(
    # λ, T; `held_out` is the share of the training images that "general" keeps aside.
    settings={
        "target": "minlogit",
        "weight": 1.0,
        "temperature": 2.0,
        "held_out": 0.1,
        **divergence.SETTINGS,
    },
    loss=loss,
    check=check,
    needs=Needs(own_augmentation=True),
    memory=Memory(
        first=lambda config, size: jnp.full(size, 1 / size),
        held_out=lambda config: config.held_out if config.target == "general" else 0.0,
        renew=general_weights,
    ),
)
