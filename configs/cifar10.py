"""CIFAR-10. `configs/cifar10.py:NAME` picks the recipe: orc (default) or orc_peers."""

from orc_jax.config import default, peer
from orc_jax.errors import unknown

GROUPS = {
    # The networks of the ORC paper: the pivot teacher, assistants, the target student.
    "orc": ("resnet26", "resnet20", "resnet14", "resnet8"),
    "orc_peers": ("resnet20",) * 4,
}


def get_config(preset: str = "orc"):
    """200 epochs, learning rate 0.1, ×0.1 at 100 and 150."""
    if preset not in GROUPS:
        raise unknown("preset of configs/cifar10.py", preset, GROUPS)
    config = default("orc")
    config.epochs = 200
    config.batch_size = 128
    config.data.name = "cifar10"
    config.optimizer.learning_rate = 0.1
    config.optimizer.decay_epochs = (100, 150)
    config.peers = tuple(peer(network) for network in GROUPS[preset])
    if preset == "orc_peers":
        config.method.pivot = None
    return config
