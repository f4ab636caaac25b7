"""ONE: on-the-fly native ensemble (NeurIPS 2018, arXiv 1806.04606), as in OKDDip's program.

One trunk and P branches. A gate on the trunk's output weighs the branches' logits; their
weighted sum m teaches every branch, and is trained itself.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from orc_jax import losses
from orc_jax.methods import divergence
from orc_jax.methods.method import (
    Batch,
    Ensemble,
    Method,
    Needs,
    Positions,
    equal_networks,
)
from orc_jax.models.layers import Dense
from orc_jax.models.norm import BatchNorm


class Gate(nn.Module):
    """Global average pool of the trunk's output → dense P → batch norm: [B, P]."""

    size: int

    @nn.compact
    def __call__(self, batch: Batch, train: bool):
        trunk = batch.outputs.trunk[0]  # the same for all branches
        x = Dense(self.size, use_bias=False)(trunk)  # the norm has the bias
        return BatchNorm(use_running_average=not train)(x)


def gated(config, batch: Batch):
    """Compute the ensemble m = Σ_p g_p z_p, [B, C], with the gate g = softmax(ReLU(…)), [B, P]."""
    gate = jax.nn.softmax(jax.nn.relu(batch.own_output))
    return jnp.einsum("bp,pbc->bc", gate, batch.logits)


def loss(config, batch: Batch):
    """Compute CE_p + α ramp(e) KD_T(z_p, m) of every branch, and CE(m).

    Gradient flows through m: it trains the gate.
    """
    z, ensemble = batch.logits, gated(config, batch)
    weight = config.alpha * losses.ramp(batch.epoch, config.ramp_epochs)
    return {
        "ce": losses.cross_entropy(z, batch.truth).mean(axis=1),
        "kd": weight * divergence.between(config, z, ensemble, batch.labels),
        "ensemble_ce": losses.cross_entropy(ensemble, batch.truth).mean(),
    }


METHOD = Method(
    settings={
        "temperature": 3.0,
        "alpha": 1.0,
        "ramp_epochs": 80,
        **divergence.SETTINGS,
    },  # T, α, L
    loss=loss,
    check=lambda config, networks: equal_networks("one", networks),
    positions=Positions(titles=lambda config, size: ["branch"] * size),
    needs=Needs(shared_trunk=lambda config: True),
    own_network=lambda config, size: Gate(size),
    ensembles={"gated": Ensemble(gated, lambda config, size: list(range(size)))},  # ONE-E
)
