"""The methods by name: one file each, one registry.

A method is a module with
  defaults() -> ConfigDict             its settings (config.method);
  check(config, group_size)            raises UserError for settings that make no sense;
  describe(config, group_size) -> list[str]    what each peer is, for the reader;
  apart(config, group_size) -> [P]     peers without a pass on the batch before the phase;
  phase(config, stacks, logits, labels, key, teach) -> stacks, logits, roles, metrics
                                       what happens between the forward pass and the loss;
                                       `roles.learns` [P] says who takes a step after it,
                                       `roles.promoted` [P] who was given another role;
  loss(config, logits, labels, roles) -> [P], metrics
                                       the loss of every peer.
It sees whole arrays, [P, B, C] of all peers and the global batch, and knows no devices.
"""

from orc_jax.errors import unknown
from orc_jax.methods import orc

METHODS = {"orc": orc}


def get(name: str):
    """The method of this name; `UserError` if there is none."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
