"""VGG with batch norm (Simonyan & Zisserman 2015), for small images.

`vgg`: the form of the usual knowledge-distillation benchmark. `vgg_okddip`: OKDDip's, which
pools once more and has three dense layers (without dropout, as batch norm is there).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn

from orc_jax.models.layers import conv, dense, global_average_pool, pool
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads, stage

WIDTHS = (64, 128, 256, 512, 512)


def _numbered(match):
    """Convolution, norm and activation go by number in PyTorch: 0, 1, (2), 3, 4, …"""
    return f"{3 * int(match[1]) + (match[2] == 'bn')}"


TORCH_NAMES = [
    (r"\bblock(\d+)\.(conv|bn)\b", _numbered),
    (r"^stem\.", "block0."),
    (r"^stages_(\d+)\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"^head\.fc\b", "classifier"),
]
TORCH_NAMES_OKDDIP = [
    (r"^stem\.block(\d+)\.(conv|bn)\b", lambda m: f"{m[2]}{int(m[1]) + 1}"),
    (r"\bblock(\d+)\.(conv|bn)\b", _numbered),
    (r"^stages_(\d+)\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"^head\.fc(\d+)\b", lambda m: f"classifier.{3 * (int(m[1]) - 1)}"),
]


class ConvBlock(Block):
    """A 3×3 convolution with norm and activation; stride 2 pools before it.

    Attributes:
      pool_above: resolution up to which it does not pool.
    """

    pool_above: int = 0

    @nn.compact
    def __call__(self, x, train):
        if self.stride == 2 and x.shape[1] > self.pool_above:
            x = pool(nn.max_pool, x)
        x = conv(self.features, 3, name="conv", use_bias=True)(x)
        return nn.relu(self.norms(train)(name="bn")(x))


class BenchmarkBlock(ConvBlock):
    """4×4 is not pooled: the benchmark's networks end there at 32×32 and at 64×64."""

    pool_above: int = 4


class Head(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features


class HeadOkddip(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = global_average_pool(pool(nn.max_pool, x))
        x = nn.relu(dense(512, "fc1")(x))
        features = nn.relu(dense(512, "fc2")(x))
        return dense(self.num_classes, "fc3")(features), features


def vgg(
    convolutions: Sequence[int],
    num_classes: int,
    norm: Callable,
    block: Callable = BenchmarkBlock,
    head: Callable = Head,
):
    """A VGG network.

    Args:
      convolutions: how many there are before each pooling.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.
      block, head: their constructors.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    stem = Stage(block, ((WIDTHS[0], 1),) * convolutions[0], norm)
    stages = [
        stage(block, width, 2, count, norm)
        for width, count in zip(WIDTHS[1:], convolutions[1:], strict=True)
    ]
    last = head(num_classes)
    return Network(stem, stages, last, auxiliary_heads(stages, last))


def vgg_okddip(convolutions: Sequence[int], num_classes: int, norm: Callable):
    """OKDDip's VGG; images of 32×32 at least. See `vgg`."""
    return vgg(convolutions, num_classes, norm, ConvBlock, HeadOkddip)
