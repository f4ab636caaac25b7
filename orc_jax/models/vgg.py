"""VGG with batch norm (Simonyan & Zisserman 2015), for small images.

`vgg`: the form of the usual knowledge-distillation benchmark. `vgg_okddip`: OKDDip's, which
pools once more and has three dense layers (its branches have dropout between them, ours not).
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn

from orc_jax.models.layers import Head, conv, dense, global_average_pool, max_pool
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads

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
    """A 3×3 convolution with norm and activation; stride 2 pools after it.

    Attributes:
      smallest: resolution that is not pooled.
    """

    smallest: int = 1

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, 3, name="conv", use_bias=True)(x)
        x = nn.relu(self.norms(train)(name="bn")(x))
        if self.stride == 2 and min(x.shape[1:3]) > self.smallest:
            x = max_pool(x)
        return x


class HeadOkddip(nn.Module):
    """Three dense layers; its features are what the first of them sees, as in OKDDip."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = global_average_pool(x)
        x = nn.relu(dense(512, "fc1")(features))
        x = nn.relu(dense(512, "fc2")(x))
        return dense(self.num_classes, "fc3")(x), features


def vgg(convolutions: Sequence[int], num_classes: int, norm: Callable):
    """The benchmark's VGG, which ends at 4×4 for images of 32×32 and of 64×64.

    Args:
      convolutions: how many there are before each pooling.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    block = partial(ConvBlock, smallest=4)
    return _build(block, convolutions, (2, 2, 2, 2, 1), Head(num_classes), norm)


def vgg_okddip(convolutions: Sequence[int], num_classes: int, norm: Callable):
    """OKDDip's VGG; images of 32×32 at least. See `vgg`."""
    return _build(ConvBlock, convolutions, (2,) * 5, HeadOkddip(num_classes), norm)


def _build(block, convolutions, strides, head, norm):
    stem, *stages = (
        Stage(block, (*[(width, 1)] * (count - 1), (width, stride)), norm)
        for width, count, stride in zip(WIDTHS, convolutions, strides, strict=True)
    )
    return Network(stem, stages, head, auxiliary_heads(stages, head))
