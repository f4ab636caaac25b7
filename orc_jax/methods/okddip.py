"""OKDDip: online distillation with diverse peers (AAAI 2020, arXiv 1912.00350).

P−1 auxiliary peers attend to each other, so that each has a target of its own and they stay
different; the last peer, the group leader, learns from their mean and is the one kept.
`form="branch"`: one trunk. `form="network"`: P networks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods import divergence
from orc_jax.methods.method import (
    Batch,
    Ensemble,
    Method,
    Needs,
    Positions,
    equal_networks,
    one_of,
)
from orc_jax.models.layers import Dense


class Attention(nn.Module):
    """Queries q_p = W_q f_p and keys k_p = W_k f_p of the auxiliary peers, [B, P−1, D/8] each."""

    @nn.compact
    def __call__(self, batch: Batch, train: bool):
        features = jnp.stack(batch.outputs.features[:-1], axis=1)
        size = max(1, features.shape[-1] // 8)
        query = Dense(size, use_bias=False, name="query")(features)
        return query, Dense(size, use_bias=False, name="key")(features)


def loss(config, batch: Batch):
    """Compute Σ_p CE_p + α ramp(e) [ Σ_{p<P−1} KD_T(z_p, m_p) + KD_T(z_leader, mean_{p<P−1} z_p) ].

    m_i = Σ_j A_ij z_j, A = softmax_j(q_i · k_j) per image; gradient flows through both targets.
    """
    z, (query, key) = batch.logits, batch.own_output
    attention = jax.nn.softmax(jnp.einsum("bid,bjd->bij", query, key))
    targets = jnp.einsum("bij,jbc->ibc", attention, z[:-1])
    targets = jnp.concatenate([targets, z[:-1].mean(axis=0, keepdims=True)])
    weight = config.alpha * losses.ramp(batch.epoch, config.ramp_epochs)
    return {
        "ce": losses.cross_entropy(z, batch.truth).mean(axis=1),
        "kd": weight * divergence.between(config, z, targets, batch.labels),
    }


def check(config, networks):
    """Raise `UserError` for fewer than three peers, or networks that must be equal and are not."""
    one_of(config, "form", ("branch", "network"))
    if len(networks) < 3:
        raise UserError(
            f"okddip needs two auxiliary peers and a leader, config.peers has {len(networks)}"
        )
    equal_networks("okddip", networks if config.form == "branch" else networks[:-1])


METHOD = Method(
    settings={
        "form": "branch",
        "temperature": 3.0,  # T
        "alpha": 1.0,  # α
        "ramp_epochs": 80,  # L
        **divergence.SETTINGS,
    },
    loss=loss,
    check=check,
    positions=Positions(
        titles=lambda config, size: ["auxiliary peer"] * (size - 1) + ["group leader"],
        kept=lambda config, size: [size - 1],
    ),
    needs=Needs(shared_trunk=lambda config: config.form == "branch"),
    own_network=lambda config, size: Attention(),
    # What the paper calls its ensemble and its diversity leave out the leader.
    ensembles={
        "auxiliary": Ensemble(
            lambda config, batch: batch.logits[:-1].mean(axis=0),
            lambda config, size: list(range(size - 1)),
        )
    },
)
