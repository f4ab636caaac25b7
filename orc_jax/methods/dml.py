"""DML: deep mutual learning (CVPR 2018, arXiv 1706.00384). Every peer teaches every other.

The paper's setting is T = 1 and constant targets. OKDDip's program has T = 3 and lets
gradient flow through the target: `temperature=3`, `constant_target=False`.
"""

import jax

from orc_jax import losses
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, at_least_two, one_of


def loss(config, batch: Batch):
    """Compute CE_j + 1/(P−1) Σ_{k≠j} KD_T(z_j, z_k), or one KD against the mean of the z_k."""
    z = batch.logits
    if config.teaching == "individual":
        pairs = divergence.pairwise(config, z, batch.labels, config.constant_target)
        distillation = pairs.sum(axis=1) / (len(z) - 1)  # KD of a peer with itself is 0
    else:
        target = losses.mean_of_others(z)
        target = jax.lax.stop_gradient(target) if config.constant_target else target
        distillation = divergence.between(config, z, target, batch.labels)
    return {"ce": losses.cross_entropy(z, batch.truth).mean(axis=1), "kd": distillation}


def check(config, networks):
    """Raise `UserError` for a group of one, or an unknown form of teaching."""
    at_least_two("dml", networks)
    one_of(config, "teaching", ("individual", "ensemble"))


METHOD = Method(
    settings={
        "temperature": 1.0,
        "teaching": "individual",
        "constant_target": True,
        **divergence.SETTINGS,
    },
    loss=loss,
    check=check,
)
