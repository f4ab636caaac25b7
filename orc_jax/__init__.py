"""Online knowledge distillation in JAX: groups of networks that teach each other."""

from orc_jax.errors import UserError
from orc_jax.prepare import evaluate
from orc_jax.trained.model import load
from orc_jax.trained.saved import load as load_network
from orc_jax.training import train

__all__ = ["UserError", "evaluate", "load", "load_network", "train"]
