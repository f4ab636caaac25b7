"""DGKD: densely guided distillation, a chain in which all teach (ICCV 2021, arXiv 2009.08825).

The chain is the group, in peer order: teacher → assistants → student. As in TAKD, its networks are
trained one after the other and are frozen when they teach, but every network learns from all that
come before it. In every step, `drop` of these teachers, chosen at random, are left out.
"""

import jax
import jax.numpy as jnp

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods import divergence, takd
from orc_jax.methods.method import Batch, Method, Positions, Roles
from orc_jax.peers import Kind


def phase(config, batch: Batch, key) -> Roles:
    """Choose the teachers of this step: all but `drop`; at least one is left."""
    size = len(batch.logits)
    count = max(1, size - 1 - config.drop)
    teaches = jnp.zeros(size).at[jax.random.permutation(key, size - 1)[:count]].set(1.0)
    student = jnp.arange(size) == size - 1
    return Roles(learns=student, learns_from=student[:, None] * teaches)


def loss(config, batch: Batch):
    """Compute (1−λ) CE + λ Σ_j KD_T(z, z_j) of the last network; the targets are constant."""
    teachers = jax.lax.stop_gradient(batch.logits[:-1])
    students = jnp.broadcast_to(batch.logits[-1], teachers.shape)
    cross_entropy = losses.cross_entropy(batch.logits[-1], batch.truth).mean()
    distillation = divergence.between(config, students, teachers, batch.labels)
    weights = batch.roles.learns_from[-1, :-1]
    learns = batch.roles.learns
    return {
        "ce": learns * (1 - config.weight) * cross_entropy,
        "kd": learns * config.weight * jnp.sum(weights * distillation),
    }


def check(config, networks: list[str]) -> None:
    """Raise `UserError` where the settings make no sense for a chain of these networks."""
    takd.check(config, networks)
    if type(config.drop) is not int or config.drop < 0:
        raise UserError(f"method.drop is {config.drop}, allowed: whole numbers from 0")


def kinds(config, size: int) -> list[Kind]:
    """Return the `Kind` of each network."""
    frozen: list[Kind] = ["frozen"] * (size - 1)
    return [*frozen, "train"]


METHOD = Method(
    # T, λ and the number of teachers that are left out, as in the authors' program.
    settings={"temperature": 5.0, "weight": 1.0, "drop": 1, **divergence.SETTINGS},
    loss=loss,
    phase=phase,
    check=check,
    positions=Positions(
        titles=takd.titles,
        kept=lambda config, size: [size - 1],
        kinds=kinds,
        pretrained=lambda config, size: {i: list(range(i)) for i in range(size - 1)},
    ),
)
