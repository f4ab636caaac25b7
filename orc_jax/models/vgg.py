"""VGG with batch norm (Simonyan & Zisserman 2015, arXiv 1409.1556), for small images.

`vgg` is the variant of the usual knowledge-distillation benchmark. `vgg_okddip` is OKDDip's, which
pools once more and has three dense layers. OKDDip's branches have dropout between these layers,
which is omitted here.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn

from orc_jax.models.initialisation import Initialisation, small_normal, zero_bias
from orc_jax.models.layers import Dense, Head, conv, global_average_pool, max_pool
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads

WIDTHS = (64, 128, 256, 512, 512)

# OKDDip's program leaves the biases of the dense layers as PyTorch draws them.
OKDDIP = Initialisation(dense=small_normal)
BENCHMARK = Initialisation(dense=small_normal, dense_bias=zero_bias)


def _numbered(match):
    """Return the index by which PyTorch names a layer: (convolution, norm, activation)* from 0."""
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
    """A 3×3 convolution with norm and activation, and with stride 2 a pooling layer.

    Attributes:
      smallest: activations of at most this height or width, in pixels, are not pooled.
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
    """Three dense layers; as in OKDDip, the features are the input of the first.

    Attributes:
      num_classes: number of classes C.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = global_average_pool(x)
        x = nn.relu(Dense(512, name="fc1")(features))
        x = nn.relu(Dense(512, name="fc2")(x))
        return Dense(self.num_classes, name="fc3")(x), features


def vgg(convolutions: Sequence[int], num_classes: int, norm: Callable):
    """Build the benchmark's VGG, whose last activations are 4×4 for images of 32×32 and 64×64.

    Args:
      convolutions: number of convolutions of each of the five resolutions.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    block = partial(ConvBlock, smallest=4)
    return _build(block, convolutions, (2, 2, 2, 2, 1), Head(num_classes), norm, BENCHMARK)


def vgg_okddip(convolutions: Sequence[int], num_classes: int, norm: Callable):
    """Build OKDDip's VGG, for images of at least 32×32.

    Args:
      convolutions: number of convolutions of each of the five resolutions.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    return _build(ConvBlock, convolutions, (2,) * 5, HeadOkddip(num_classes), norm, OKDDIP)


def _build(block, convolutions, strides, head, norm, initialisation):
    stem, *stages = (
        Stage(block, (*[(width, 1)] * (count - 1), (width, stride)), norm)
        for width, count, stride in zip(WIDTHS, convolutions, strides, strict=True)
    )
    heads = auxiliary_heads(stages, head)
    return Network(stem, stages, head, heads, initialisation=initialisation)
