"""TAKD: teacher assistants, a chain of networks of falling size (AAAI 2020, arXiv 1902.03393).

The chain is the group, in peer order: teacher → assistants → student. Its networks are trained one
after the other, each by the one before it, and are frozen when they teach. A run trains the last
one; the others are trained before it (see pretraining.py).
"""

import jax
import jax.numpy as jnp

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, Positions, at_least_two
from orc_jax.peers import Kind


def loss(config, batch: Batch):
    """Compute (1−λ) CE + λ KD_T(z, z_previous) of the last network; the target is constant."""
    student, previous = batch.logits[-1], jax.lax.stop_gradient(batch.logits[-2])
    cross_entropy = losses.cross_entropy(student, batch.truth).mean()
    distillation = divergence.between(config, student, previous, batch.labels)
    is_student = jnp.arange(len(batch.logits)) == len(batch.logits) - 1
    return {
        "ce": is_student * (1 - config.weight) * cross_entropy,
        "kd": is_student * config.weight * distillation,
    }


def check(config, networks: list[str]) -> None:
    """Raise `UserError` for a chain of one network, or a weight outside of 0 to 1."""
    at_least_two(config.name, networks)
    if not 0 <= config.weight <= 1:
        raise UserError(f"method.weight is {config.weight}, allowed: 0 to 1")


def titles(config, size: int) -> list[str]:
    """Return what each network of the chain is called."""
    return ["teacher", *["assistant"] * (size - 2), "student"]


def kinds(config, size: int) -> list[Kind]:
    """Return the `Kind` of each network: of the teachers, the last one alone is asked."""
    idle: list[Kind] = ["idle"] * (size - 2)
    return [*idle, "frozen", "train"]


METHOD = Method(
    settings={"temperature": 5.0, "weight": 0.5, **divergence.SETTINGS},  # T, λ; our defaults
    loss=loss,
    check=check,
    positions=Positions(
        titles=titles,
        kept=lambda config, size: [size - 1],
        kinds=kinds,
        pretrained=lambda config, size: {i: [i - 1] if i else [] for i in range(size - 1)},
    ),
)
