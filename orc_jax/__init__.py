"""Online knowledge distillation in JAX: groups of networks that teach each other."""

from orc_jax import start  # noqa: F401 - before the packages that the others import

# isort: split
from orc_jax.config import default_config, peer
from orc_jax.errors import UserError
from orc_jax.evaluation import evaluate
from orc_jax.methods import register as register_method
from orc_jax.models import register as register_network
from orc_jax.runtime.versions import VERSION as __version__
from orc_jax.trained.model import load
from orc_jax.trained.saved import load as load_network
from orc_jax.training import train

__all__ = [
    "UserError",
    "__version__",
    "default_config",
    "evaluate",
    "load",
    "load_network",
    "peer",
    "register_method",
    "register_network",
    "train",
]
