"""DCM: dense cross-layer mutual distillation (ECCV 2020, arXiv 2008.07816).

Every network has two auxiliary heads besides its own while it trains; every head of one
network teaches every head of the others. The auxiliary heads are not part of what is kept.
"""

import jax.numpy as jnp
import numpy as np

from orc_jax import losses
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, Needs, at_least_two

# The authors' program adds this to a student's probabilities before their logarithm.
FLOOR = 1e-8


def loss(config, batch: Batch):
    """Compute Σ_heads CE + Σ KD_T(z_i, z_j) over ordered cross-network pairs of heads.

    The target z_j is constant.
    """
    outputs = batch.outputs
    heads = jnp.concatenate([outputs.auxiliary, outputs.logits[:, :, None]], axis=2)  # [P, B, H, C]
    peers, size, count, classes = heads.shape
    z = heads.swapaxes(1, 2).reshape(peers * count, size, classes)
    network = np.arange(len(z)) // count
    across = network[:, None] != network[None, :]
    cross_entropy = losses.cross_entropy(z, batch.truth).mean(axis=1)
    pairs = divergence.pairwise(config, z, batch.labels, floor=FLOOR)
    distillation = jnp.sum(across * pairs, axis=1)
    return {
        "ce": cross_entropy.reshape(peers, count).sum(axis=1),
        "kd": distillation.reshape(peers, count).sum(axis=1),
    }


METHOD = Method(
    settings={"temperature": 1.0, **divergence.SETTINGS},  # T
    loss=loss,
    check=lambda config, networks: at_least_two("dcm", networks),
    needs=Needs(auxiliary_heads=True),
)
