"""CIFAR ResNets: depth 6n + 2, three stages (He et al. 2016, section 4.2).

Widths and projection shortcuts as in the usual knowledge-distillation benchmark.
"""

from collections.abc import Callable

import flax.linen as nn

from orc_jax.models.layers import conv, dense, global_average_pool
from orc_jax.models.network import Block, Network, auxiliary_heads, stage


class ResidualBlock(Block):
    """Two 3×3 convolutions and a shortcut, projected where the shape changes."""

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        y = nn.relu(norm(name="bn1")(conv(self.features, 3, self.stride, "conv1")(x)))
        y = norm(name="bn2")(conv(self.features, 3, 1, "conv2")(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_bn")(conv(self.features, 1, self.stride, "shortcut")(x))
        return nn.relu(x + y)


class Stem(nn.Module):
    features: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, 3, name="conv1")(x)
        return nn.relu(self.norm(use_running_average=not train, name="bn1")(x))


class Head(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features


def resnet(depth: int, widths: tuple[int, int, int, int], num_classes: int, norm: Callable):
    """A CIFAR ResNet.

    Args:
      depth: 6n + 2, n blocks a stage.
      widths: channels of the stem and of the three stages.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    blocks = (depth - 2) // 6
    stages = [
        stage(ResidualBlock, width, stride, blocks, norm)
        for width, stride in zip(widths[1:], (1, 2, 2), strict=True)
    ]
    head = Head(num_classes)
    return Network(Stem(widths[0], norm), stages, head, auxiliary_heads(stages, head))
