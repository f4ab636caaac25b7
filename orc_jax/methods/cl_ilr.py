"""CL-ILR: collaborative learning with intermediate-level representation sharing (Song & Chai,
NeurIPS 2018), as in OKDDip's program. One trunk, P branches, each taught by the others' mean.
"""

from orc_jax import losses
from orc_jax.methods import divergence
from orc_jax.methods.method import Batch, Method, Needs, Positions, equal_networks


def loss(config, batch: Batch):
    """Compute CE_i + α ramp(e) KD_T(z_i, mean_{j≠i} z_j); gradient flows through the target."""
    z = batch.logits
    weight = config.alpha * losses.ramp(batch.epoch, config.ramp_epochs)
    return {
        "ce": losses.cross_entropy(z, batch.truth).mean(axis=1),
        "kd": weight * divergence.between(config, z, losses.mean_of_others(z), batch.labels),
    }


METHOD = Method(
    settings={
        "temperature": 3.0,
        "alpha": 1.0,
        "ramp_epochs": 80,
        **divergence.SETTINGS,
    },  # T, α, L
    loss=loss,
    check=lambda config, networks: equal_networks("cl_ilr", networks),
    positions=Positions(titles=lambda config, size: ["branch"] * size),
    needs=Needs(shared_trunk=lambda config: True, rescaled_trunk=True),
)
