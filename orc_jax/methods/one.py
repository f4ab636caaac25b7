"""ONE: on-the-fly native ensemble (NeurIPS 2018, arXiv 1806.04606), as in OKDDip's program.

One trunk and P branches. A gate on the trunk's output weighs the branches' logits; their
weighted sum m teaches every branch, and is trained itself.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from orc_jax import losses
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, Needs, Positions, equal_networks
from orc_jax.models.layers import dense


class Gate(nn.Module):
    """Global average pool of the trunk's output → dense P → batch norm: [B, P].

    The norm always takes the batch's statistics: the gate is used in training alone.
    """

    size: int

    @nn.compact
    def __call__(self, batch: Batch):
        trunk = batch.outputs.trunk[0]  # the same for all branches
        x = dense(self.size, use_bias=False)(trunk)  # the norm has the bias
        scale = self.param("scale", nn.initializers.ones, (self.size,))
        bias = self.param("bias", nn.initializers.zeros, (self.size,))
        return scale * jax.nn.standardize(x, axis=0, epsilon=1e-5) + bias


def loss(config, batch: Batch):
    """Compute CE_p + α ramp(e) KD_T(z_p, m) of every branch, and CE(m), m = Σ_p g_p z_p.

    Gradient flows through m: it trains the gate.
    """
    z = batch.logits
    gate = jax.nn.softmax(jax.nn.relu(batch.own_output))  # g [B, P]
    ensemble = jnp.einsum("bp,pbc->bc", gate, z)
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
)
