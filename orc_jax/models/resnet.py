"""Residual networks (He et al. 2016), for small images and for ImageNet.

Small images: three stages behind a 3×3 stem, as in the usual knowledge-distillation
benchmark (`resnet20`) and in OKDDip (bottlenecks), or four (`ResNet18`). ImageNet: four
stages behind a 7×7 stem and a pooling layer, as in torchvision (`resnet18`).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn

from orc_jax.models.layers import Head, conv, max_pool
from orc_jax.models.network import Block, Network, auxiliary_heads, stage

TORCH_NAMES = [
    (r"^(stem|head)\.", ""),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\bshortcut_bn\b", "downsample.1"),
    (r"\bshortcut\b", "downsample.0"),
]
# The four-stage networks for small images have two names of their own.
TORCH_NAMES_SMALL = [
    *TORCH_NAMES,
    (r"\bdownsample\b", "shortcut"),
    (r"^fc\b", "linear"),
]


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


class Bottleneck(Block):
    """1×1, 3×3 and 1×1 convolutions and a shortcut, projected where the shape changes.

    Attributes:
      inner: channels of the 3×3 convolution, as a factor of those of the output.
    """

    inner: float = 1 / 4

    @nn.compact
    def __call__(self, x, train):
        norm, inner = self.norms(train), int(self.features * self.inner)
        y = nn.relu(norm(name="bn1")(conv(inner, 1, 1, "conv1")(x)))
        y = nn.relu(norm(name="bn2")(conv(inner, 3, self.stride, "conv2")(y)))
        y = norm(name="bn3")(conv(self.features, 1, 1, "conv3")(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_bn")(conv(self.features, 1, self.stride, "shortcut")(x))
        return nn.relu(x + y)


class Stem(nn.Module):
    """A convolution with norm and activation."""

    features: int
    norm: Callable
    stride: int = 1
    kernel: int = 3

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, self.kernel, self.stride, "conv1")(x)
        return nn.relu(self.norm(use_running_average=not train, name="bn1")(x))


class ImageNetStem(nn.Module):
    """A 7×7 convolution and a pooling layer: a quarter of the resolution."""

    features: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, 7, 2, "conv1")(x)
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
        return max_pool(x, 3)


def resnet(
    widths: Sequence[int],
    blocks: Sequence[int],
    num_classes: int,
    norm: Callable,
    stem: Callable = Stem,
    stem_width: int = 64,
    block: Callable = ResidualBlock,
):
    """A residual network.

    Args:
      widths: channels of every stage's output; each stage but the first halves the
        resolution.
      blocks: of every stage.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.
      stem: its constructor.
      stem_width: its channels.
      block: constructor of a block.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    stages = [
        stage(block, width, 1 if i == 0 else 2, count, norm)
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True))
    ]
    head = Head(num_classes)
    return Network(stem(stem_width, norm), stages, head, auxiliary_heads(stages, head))
