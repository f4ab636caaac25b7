"""Independent training ("vanilla"): every network learns from the labels alone.

Σ_p CE_p. With one network it is plain training, the baseline of every table.
"""

from orc_jax import losses
from orc_jax.methods.method import Batch, Method


def loss(config, batch: Batch):
    """Compute CE_p of every peer."""
    return {"ce": losses.cross_entropy(batch.logits, batch.truth).mean(axis=1)}


METHOD = Method(settings={}, loss=loss)
