"""MobileNetV2 for CIFAR (Sandler et al. 2018): inverted residuals.

As in the usual knowledge-distillation benchmark, where the width factor is 0.5: ReLU,
stride 2 in the stem, 1280 features whatever the width.
"""

from collections.abc import Callable

import flax.linen as nn

from orc_jax.models.layers import conv, dense, global_average_pool
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads

# Features at width 1, stride of the first block, blocks; a stage is all of one resolution.
STAGES = (
    ((24, 1, 2),),
    ((32, 2, 3),),
    ((64, 2, 4), (96, 1, 3)),
    ((160, 2, 3), (320, 1, 1)),
)


class InvertedResidual(Block):
    """1×1 up to `expansion` times the channels, depthwise 3×3, 1×1 down; a shortcut where
    the shape stays."""

    expansion: int = 6

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        wide = self.expansion * x.shape[-1]
        y = nn.relu(norm(name="expand_bn")(conv(wide, 1, name="expand")(x)))
        y = conv(wide, 3, self.stride, "depthwise", groups=wide)(y)
        y = nn.relu(norm(name="depthwise_bn")(y))
        y = norm(name="project_bn")(conv(self.features, 1, name="project")(y))
        return x + y if x.shape == y.shape else y


class Stem(nn.Module):
    """A convolution of stride 2 and a block that does not expand."""

    features: tuple[int, int]
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features[0], 3, 2, "conv1")(x)
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
        return InvertedResidual(self.features[1], 1, self.norm, expansion=1, name="block0")(
            x, train
        )


class Head(nn.Module):
    num_classes: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(1280, 1, name="conv2")(x)
        x = nn.relu(self.norm(use_running_average=not train, name="bn2")(x))
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features


def mobilenet_v2(width: float, num_classes: int, norm: Callable):
    """MobileNetV2.

    Args:
      width: factor of the channels.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    stages = [
        Stage(
            InvertedResidual,
            [
                (int(features * width), stride if i == 0 else 1)
                for features, stride, blocks in groups
                for i in range(blocks)
            ],
            norm,
        )
        for groups in STAGES
    ]
    head = Head(num_classes, norm)
    stem = Stem((int(32 * width), int(16 * width)), norm)
    return Network(stem, stages, head, auxiliary_heads(stages, head))
