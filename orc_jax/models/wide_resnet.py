"""Wide residual networks, WRN-depth-width (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

The blocks are pre-activation blocks, so that the final norm and activation belong to the head.
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
    """Norm, activation and 3×3 convolution, twice, and a shortcut.

    Where the number of channels changes, the shortcut is a projection of the activated input.
    """

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
    """A 3×3 convolution to 16 channels; the first block's norm and activation follow it."""

    @nn.compact
    def __call__(self, x, train):
        return conv(16, 3, name="conv1")(x)


class Head(nn.Module):
    """Norm, activation, and a classifier of the mean over height and width.

    Attributes:
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
    """

    num_classes: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features


def wide_resnet(depth: int, width: int, num_classes: int, norm: Callable):
    """Build WRN-depth-width.

    Args:
      depth: 6n + 4 for n blocks per stage.
      width: factor of the stages' 16, 32 and 64 channels.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

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
