"""Online knowledge distillation in JAX: groups of networks that teach each other."""

from orc_jax.errors import UserError
from orc_jax.inference import load
from orc_jax.networks import load as load_network
from orc_jax.run import evaluate
from orc_jax.train import train

__all__ = ["UserError", "evaluate", "load", "load_network", "train"]
