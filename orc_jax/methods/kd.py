"""KD: a pretrained, frozen teacher (Hinton et al. 2015), as in OKDDip's program.

Every student learns from the labels and from the teacher, and not from other students.
"""

import jax
import numpy as np

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, Positions, at_least_two


def loss(config, batch: Batch):
    """Compute CE_s + α KD_T(z_s, z_teacher) of every student; the target is constant."""
    student = ~is_teacher(config, len(batch.logits))
    target = jax.lax.stop_gradient(batch.logits[config.teacher])
    cross_entropy = losses.cross_entropy(batch.logits, batch.truth).mean(axis=1)
    return {
        "ce": student * cross_entropy,
        "kd": student
        * config.alpha
        * divergence.between(config, batch.logits, target, batch.labels),
    }


def is_teacher(config, size):
    """Return [P] bool, true for the teacher."""
    return np.arange(size) == config.teacher


def check(config, networks):
    """Raise `UserError` without a student, or where the teacher is outside of the group."""
    at_least_two("kd", networks)
    if not 0 <= config.teacher < len(networks):
        raise UserError(f"method.teacher is {config.teacher}, allowed: 0 to {len(networks) - 1}")


METHOD = Method(
    # Position, T, α.
    settings={"teacher": 0, "temperature": 3.0, "alpha": 1.0, **divergence.SETTINGS},
    loss=loss,
    check=check,
    positions=Positions(
        titles=lambda c, size: np.where(is_teacher(c, size), "teacher", "student").tolist(),
        kept=lambda c, size: np.flatnonzero(~is_teacher(c, size)).tolist(),
        kinds=lambda c, size: np.where(is_teacher(c, size), "frozen", "train").tolist(),
    ),
)
