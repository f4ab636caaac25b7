"""CIFAR-100. `configs/cifar100.py:NAME` picks the recipe: orc (default) or orc_peers."""

from orc_jax.config import default, peer
from orc_jax.errors import unknown

GROUPS = {
    # The pivot teacher, assistants, and last the target student.
    "orc": ("resnet56", "resnet44", "resnet32", "resnet20"),
    "orc_peers": ("resnet32",) * 4,
}


def get_config(preset: str = "orc"):
    """The usual benchmark's recipe: 240 epochs, learning rate ×0.1 at 150, 180 and 210."""
    if preset not in GROUPS:
        raise unknown("preset of configs/cifar100.py", preset, GROUPS)
    config = default("orc")
    config.epochs = 240
    config.batch_size = 128
    config.data.name = "cifar100"
    config.optimizer.learning_rate = 0.1
    config.optimizer.decay_epochs = (150, 180, 210)
    config.peers = tuple(peer(network) for network in GROUPS[preset])
    if preset == "orc_peers":
        config.method.pivot = None
    return config
