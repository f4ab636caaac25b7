"""Wide residual networks, WRN-depth-width (Zagoruyko & Komodakis 2016).

Pre-activation blocks; the final norm and activation belong to the head.
"""

from collections.abc import Callable

import flax.linen as nn

from orc_jax.models.layers import conv, dense, global_average_pool
from orc_jax.models.network import Block, Network, auxiliary_heads, stage

TORCH_NAMES = [
    (r"^(stem|head)\.", ""),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"block{int(m[1]) + 1}.layer.{m[2]}."),
    (r"\bshortcut\b", "convShortcut"),
]


class PreActivationBlock(Block):
    """Norm, activation and convolution, twice; the projection sees the activated input."""

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        activated = nn.relu(norm(name="bn1")(x))
        y = conv(self.features, 3, self.stride, "conv1")(activated)
        y = conv(self.features, 3, 1, "conv2")(nn.relu(norm(name="bn2")(y)))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, "shortcut")(activated)
        return x + y


class Stem(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return conv(16, 3, name="conv1")(x)


class Head(nn.Module):
    num_classes: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features


def wide_resnet(depth: int, width: int, num_classes: int, norm: Callable):
    """WRN-depth-width: depth 6n + 4, n blocks a stage, 16·width channels and up.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    blocks = (depth - 4) // 6
    stages = [
        stage(PreActivationBlock, channels * width, stride, blocks, norm)
        for channels, stride in ((16, 1), (32, 2), (64, 2))
    ]
    head = Head(num_classes, norm)
    return Network(Stem(), stages, head, auxiliary_heads(stages, head))
