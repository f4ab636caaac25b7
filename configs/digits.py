"""Handwritten digits, 8×8: trains on a laptop CPU in under two minutes, no download.

`configs/digits.py:NAME` picks the recipe: orc (default) or orc_peers.
"""

from orc_jax.config import default, peer
from orc_jax.errors import unknown

PRESETS = ("orc", "orc_peers")


def get_config(preset: str = "orc"):
    """ORC with a pivot and three students (orc), or four equal peers (orc_peers)."""
    if preset not in PRESETS:
        raise unknown("preset of configs/digits.py", preset, PRESETS)
    config = default("orc")
    config.epochs = 40
    config.batch_size = 64
    config.eval_batch_size = 360
    config.data.name = "digits"
    config.data.pad = 1
    config.data.flip = False
    config.optimizer.schedule = "cosine"
    config.peers = tuple(peer("resnet8") for _ in range(4))
    if preset == "orc_peers":
        config.method.pivot = None
    return config
