"""Residual networks (He et al. 2016, arXiv 1512.03385), for small images and for ImageNet.

Networks for small images have a 3×3 stem and three stages, as in the usual knowledge-distillation
benchmark (`resnet20`) and in OKDDip (with bottlenecks), or four stages (`ResNet18`). Networks for
ImageNet have a 7×7 stem with pooling and four stages, as in torchvision (`resnet18`).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from orc_jax.models.initialisation import DEFAULT, Initialisation
from orc_jax.models.layers import Head, conv, max_pool
from orc_jax.models.network import Block, Network, auxiliary_heads, stage

TORCH_NAMES = [
    (r"^(stem|head)\.", ""),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\bshortcut_bn\b", "downsample.1"),
    (r"\bshortcut\b", "downsample.0"),
]
# The benchmark's four-stage networks name two layers differently.
TORCH_NAMES_SMALL = [
    *TORCH_NAMES,
    (r"\bdownsample\b", "shortcut"),
    (r"^fc\b", "linear"),
]

TORCH_NAMES_SWITOKD = [*TORCH_NAMES, (r"^fc\b", "linear")]
TORCH_NAMES_SWITOKD_34 = [
    (r"^(stem|head)\.", ""),
    (r"^conv1\b", "conv1.0"),
    (r"^bn1\b", "conv1.1"),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"(\d\.)conv1\b", r"\1left.0"),
    (r"(\d\.)bn1\b", r"\1left.1"),
    (r"\bconv2\b", "left.3"),
    (r"\bbn2\b", "left.4"),
    (r"\bshortcut\b", "shortcut.0"),
    (r"\bshortcut_bn\b", "shortcut.1"),
]


class ResidualBlock(Block):
    """Two 3×3 convolutions and a shortcut, which is projected where the shape changes."""

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        y = nn.relu(norm(name="bn1")(conv(self.features, 3, self.stride, "conv1")(x)))
        y = norm(name="bn2")(conv(self.features, 3, 1, "conv2")(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_bn")(conv(self.features, 1, self.stride, "shortcut")(x))
        return nn.relu(x + y)


class ShortcutWithoutParameters(Block):
    """Two 3×3 convolutions and a shortcut; where the shape changes, zeros are its new channels."""

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        y = nn.relu(norm(name="bn1")(conv(self.features, 3, self.stride, "conv1")(x)))
        y = norm(name="bn2")(conv(self.features, 3, 1, "conv2")(y))
        if x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            side = jnp.zeros((*x.shape[:-1], (self.features - x.shape[-1]) // 2), x.dtype)
            x = jnp.concatenate([side, x, side], axis=-1)
        return nn.relu(x + y)


class Bottleneck(Block):
    """1×1, 3×3 and 1×1 convolutions and a shortcut, which is projected where the shape changes.

    Attributes:
      inner: channels of the 3×3 convolution, as a multiple of the output channels.
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
    """A convolution with norm and activation.

    Attributes:
      features: output channels.
      norm: constructor of a batch norm layer.
      stride: stride of the convolution.
      kernel: height and width of the kernel.
    """

    features: int
    norm: Callable
    stride: int = 1
    kernel: int = 3

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, self.kernel, self.stride, "conv1")(x)
        return nn.relu(self.norm(use_running_average=not train, name="bn1")(x))


class ImageNetStem(nn.Module):
    """A 7×7 convolution and a pooling layer, which reduce the resolution to a quarter.

    Attributes:
      features: output channels.
      norm: constructor of a batch norm layer.
    """

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
    initialisation: Initialisation = DEFAULT,
):
    """Build a residual network.

    Args:
      widths: output channels of every stage; each stage but the first halves the resolution.
      blocks: number of blocks of every stage.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
      stem: constructor of the stem, (features, norm) → stem.
      stem_width: output channels of the stem.
      block: constructor of a block, (features, stride, norm) → block.
      initialisation: of its layers.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    stages = [
        stage(block, width, 1 if i == 0 else 2, count, norm)
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True))
    ]
    head = Head(num_classes)
    heads = auxiliary_heads(stages, head)
    return Network(stem(stem_width, norm), stages, head, heads, initialisation=initialisation)
