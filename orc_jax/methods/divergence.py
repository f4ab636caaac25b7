"""Divergences between a student and its teacher: what stands where a method's equation has KD_T.

`method.divergence` chooses one; `SETTINGS` are the settings that every method with a KD_T has. The
target is constant or not as the method says.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods.method import one_of

NAMES = ("kl", "standardized", "dkd", "dist")
SETTINGS = {
    "divergence": "kl",
    "dkd_alpha": 1.0,  # weight of DKD's target class
    "dkd_beta": 8.0,  # weight of DKD's other classes
    "dist_beta": 2.0,  # weight of DIST's relations between classes
    "dist_gamma": 2.0,  # weight of DIST's relations between images
}


def between(
    config,
    student: Float[Array, "*P B C"],
    teacher: Float[Array, "*#P B C"],
    labels: Int[Array, " B"],
) -> Float[Array, "*P"]:
    """Compute the divergence that the config names, of every student from its teacher.

    Args:
      config: of the method.
      student, teacher: logits of one network each, or of P students and one or P teachers.
      labels: `Batch.labels`, for DKD.
    """
    temperature = config.temperature
    if config.divergence == "standardized":
        student, teacher = losses.standardized(student), losses.standardized(teacher)
    if config.divergence == "dkd":
        weights = config.dkd_alpha, config.dkd_beta
        return losses.dkd(student, teacher, labels, temperature, *weights)
    if config.divergence == "dist":
        return losses.dist(student, teacher, temperature, config.dist_beta, config.dist_gamma)
    return losses.kd(student, teacher, temperature)


def pairwise(
    config,
    logits: Float[Array, "P B C"],
    labels: Int[Array, " B"],
    constant_target: bool = True,
    floor: float = 0.0,
) -> Float[Array, "P P"]:
    """Compute the divergence of every ordered pair of peers: entry [i, j] has j as the teacher.

    Only `kl` and `standardized` do without arrays of P·P·B·C. Of `dkd` and `dist`, the entries
    [i, i] are 0: the 1e-8 in DIST would make a confident peer its own teacher.

    Args:
      config: of the method.
      logits: z.
      labels: `Batch.labels`.
      constant_target: whether no gradient flows into the teacher.
      floor: of `losses.pairwise_kd`, for `kl` alone.
    """
    if config.divergence == "kl":
        return losses.pairwise_kd(logits, config.temperature, constant_target, floor)
    if config.divergence == "standardized":
        z = losses.standardized(logits)
        return losses.pairwise_kd(z, config.temperature, constant_target)
    teachers = jax.lax.stop_gradient(logits) if constant_target else logits
    pairs = jax.vmap(lambda z: between(config, logits, z[None], labels), out_axes=1)(teachers)
    return jnp.where(jnp.eye(len(logits), dtype=bool), 0.0, pairs)


def check(config) -> None:
    """Raise `UserError` for an unknown divergence or a negative weight."""
    one_of(config, "divergence", NAMES)
    for key in SETTINGS.keys() - {"divergence"}:
        if not config[key] >= 0:
            raise UserError(f"method.{key} is {config[key]}, allowed: 0 or more")
