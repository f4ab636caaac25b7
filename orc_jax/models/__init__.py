"""The networks by name: one registry."""

from collections.abc import Sequence
from functools import partial

from orc_jax.errors import unknown
from orc_jax.models.layers import BatchNorm
from orc_jax.models.mobilenet import mobilenet
from orc_jax.models.mobilenet_v2 import mobilenet_v2
from orc_jax.models.network import Network
from orc_jax.models.resnet import resnet
from orc_jax.models.wide_resnet import wide_resnet

NETWORKS = {
    **{
        f"resnet{depth}": partial(resnet, depth, (16, 16, 32, 64))
        for depth in (8, 14, 20, 26, 32, 44, 56, 110)
    },
    **{f"resnet{depth}x4": partial(resnet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{width}": partial(wide_resnet, depth, width)
        for depth, width in ((16, 1), (16, 2), (16, 8), (16, 10), (28, 10), (40, 1), (40, 2))
    },
    "mobilenet": mobilenet,
    "MobileNetV2": partial(mobilenet_v2, 0.5),
}


def create(name: str, num_classes: int, batch_axes: Sequence[str] | None = None) -> Network:
    """The network of this name.

    Args:
      name: a key of `NETWORKS`.
      num_classes: outputs C.
      batch_axes: mesh axes over which batch norm takes its statistics, or None for the
        images at hand alone.

    Raises:
      UserError: there is no network of this name.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    norm = partial(BatchNorm, axis_name=batch_axes)
    return NETWORKS[name](num_classes, norm)
