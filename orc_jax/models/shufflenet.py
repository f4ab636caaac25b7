"""ShuffleNet v1 (Zhang et al. 2018) and v2 (Ma et al. 2018), for small images.

arXiv 1707.01083 and 1807.11164. As in the usual knowledge-distillation benchmark, the stem is a
1×1 convolution of stride 1, and v1 has 3 groups.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from orc_jax.models.initialisation import PYTORCH
from orc_jax.models.layers import Dense, Head, avg_pool, conv, global_average_pool
from orc_jax.models.network import Block, Network, auxiliary_heads, stage
from orc_jax.models.resnet import Stem

GROUPS = 3  # of the convolutions of v1
STEM = 24  # output channels of the stem
TORCH_NAMES = [
    (r"^(stem|head)\.", ""),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"^fc\b", "linear"),
]


def shuffle(x, groups: int):
    """Transpose the channels from (group, index) to (index, group) to mix the groups.

    Args:
      x: [..., channels].
      groups: number of groups.
    """
    *shape, channels = x.shape
    x = x.reshape(*shape, groups, channels // groups)
    return x.swapaxes(-1, -2).reshape(*shape, channels)


class ShuffleBlockV1(Block):
    """Grouped 1×1, depthwise 3×3 and grouped 1×1 convolutions, and a shortcut.

    With stride 1 the input is added to the output; with stride 2 it is pooled and appended to
    the output's channels.
    """

    @nn.compact
    def __call__(self, x, train):
        norm, concatenate = self.norms(train), self.stride == 2
        features = self.features - x.shape[-1] if concatenate else self.features
        inner = features // 4
        groups = 1 if x.shape[-1] == STEM else GROUPS
        y = nn.relu(norm(name="bn1")(conv(inner, 1, 1, "conv1", groups=groups)(x)))
        y = shuffle(y, groups)
        y = nn.relu(norm(name="bn2")(conv(inner, 3, self.stride, "conv2", groups=inner)(y)))
        y = norm(name="bn3")(conv(features, 1, 1, "conv3", groups=GROUPS)(y))
        if concatenate:
            return nn.relu(jnp.concatenate([y, avg_pool(x, 3)], axis=-1))
        return nn.relu(x + y)


class ShuffleBlockV2(Block):
    """1×1, depthwise 3×3 and 1×1 convolutions of one half of the channels.

    With stride 1 the other half remains as it is. With stride 2 each of two paths sees all
    channels and computes one half of the output.
    """

    @nn.compact
    def __call__(self, x, train):
        norm, half = self.norms(train), self.features // 2

        def depthwise(i, x):
            layer = conv(x.shape[-1], 3, self.stride, f"conv{i}", groups=x.shape[-1])
            return norm(name=f"bn{i}")(layer(x))

        def pointwise(i, x):
            return nn.relu(norm(name=f"bn{i}")(conv(half, 1, 1, f"conv{i}")(x)))

        if self.stride == 2:
            left = pointwise(2, depthwise(1, x))
            right = pointwise(5, depthwise(4, pointwise(3, x)))
        else:
            left, right = jnp.split(x, 2, axis=-1)
            right = pointwise(3, depthwise(2, pointwise(1, right)))
        return shuffle(jnp.concatenate([left, right], axis=-1), 2)


class HeadV2(nn.Module):
    """A 1×1 convolution, and a classifier of its mean over height and width.

    Attributes:
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
    """

    num_classes: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(1024, 1, name="conv2")(x)
        x = nn.relu(self.norm(use_running_average=not train, name="bn2")(x))
        features = global_average_pool(x)
        return Dense(self.num_classes, name="fc")(features), features


def shufflenet_v1(num_classes: int, norm: Callable):
    """Build ShuffleNet v1.

    Args:
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    return _build(ShuffleBlockV1, (240, 480, 960), Head(num_classes), norm)


def shufflenet_v2(num_classes: int, norm: Callable):
    """Build ShuffleNet v2.

    Args:
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    return _build(ShuffleBlockV2, (116, 232, 464), HeadV2(num_classes, norm), norm)


def _build(block, widths, head, norm):
    stages = [
        stage(block, width, 2, blocks, norm)
        for width, blocks in zip(widths, (4, 8, 4), strict=True)
    ]
    return Network(
        Stem(STEM, norm, kernel=1),
        stages,
        head,
        auxiliary_heads(stages, head),
        initialisation=PYTORCH,
    )
