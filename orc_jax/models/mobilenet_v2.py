"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): inverted residuals.

`small` is the variant of the usual knowledge-distillation benchmark for 32×32 images, of width
0.5. `imagenet` is torchvision's variant without its dropout before the classifier; SwitOKD uses
it on Tiny-ImageNet at width 1.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import flax.linen as nn

from orc_jax.models.initialisation import SWITOKD, Initialisation, small_normal, zero_bias
from orc_jax.models.layers import Dense, conv, global_average_pool
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads

# For every stage, whose blocks share one resolution, the (features at width 1, blocks) of its
# groups of equal blocks.
STAGES = (
    ((24, 2),),
    ((32, 3),),
    ((64, 4), (96, 3)),
    ((160, 3), (320, 1)),
)

INITIALISATION = Initialisation(dense=small_normal, dense_bias=zero_bias)
# SwitOKD draws the kernels of its network for Tiny-ImageNet anew.
SWITOKD_TINY = replace(SWITOKD, dense_bias=zero_bias)


def _group_and_index(match):
    """Return the index of a block's group and its index in the group, by which PyTorch names it."""
    stage, block = int(match[1]), int(match[2])
    group = 1 + sum(len(groups) for groups in STAGES[:stage])
    for _, blocks in STAGES[stage]:
        if block < blocks:
            return group, block
        group, block = group + 1, block - blocks
    raise IndexError(match[0])


def _block_index(match):
    """Return a block's index among the blocks of all stages."""
    before = sum(blocks for groups in STAGES[: int(match[1])] for _, blocks in groups)
    return before + int(match[2])


TORCH_NAMES_SMALL = [
    (r"^stem\.conv1\b", "conv1.0"),
    (r"^stem\.bn1\b", "conv1.1"),
    (r"^stem\.block\.", "blocks.0.0."),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: "blocks.{}.{}.".format(*_group_and_index(m))),
    (r"\bexpand\b", "conv.0"),
    (r"\bexpand_bn\b", "conv.1"),
    (r"\bdepthwise\b", "conv.3"),
    (r"\bdepthwise_bn\b", "conv.4"),
    (r"\bproject\b", "conv.6"),
    (r"\bproject_bn\b", "conv.7"),
    (r"^head\.conv2\b", "conv2.0"),
    (r"^head\.bn2\b", "conv2.1"),
    (r"^head\.fc\b", "classifier.0"),
]
TORCH_NAMES_IMAGENET = [
    (r"^stem\.conv1\b", "features.0.0"),
    (r"^stem\.bn1\b", "features.0.1"),
    (r"^stem\.block\.depthwise\b", "features.1.conv.0.0"),
    (r"^stem\.block\.depthwise_bn\b", "features.1.conv.0.1"),
    (r"^stem\.block\.project\b", "features.1.conv.1"),
    (r"^stem\.block\.project_bn\b", "features.1.conv.2"),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"features.{2 + _block_index(m)}."),
    (r"\bexpand\b", "conv.0.0"),
    (r"\bexpand_bn\b", "conv.0.1"),
    (r"\bdepthwise\b", "conv.1.0"),
    (r"\bdepthwise_bn\b", "conv.1.1"),
    (r"\bproject\b", "conv.2"),
    (r"\bproject_bn\b", "conv.3"),
    (r"^head\.conv2\b", "features.18.0"),
    (r"^head\.bn2\b", "features.18.1"),
    (r"^head\.fc\b", "classifier.1"),
]


class InvertedResidual(Block):
    """A 1×1 convolution that expands the channels, a depthwise 3×3 one, and a 1×1 one.

    The block has a shortcut where its output has the shape of its input.

    Attributes:
      expansion: factor by which the first convolution expands the channels; None to omit it.
      activation: activation after the first two convolutions.
    """

    expansion: int | None = 6
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x, train):
        norm, y = self.norms(train), x
        if self.expansion:
            y = conv(self.expansion * x.shape[-1], 1, name="expand")(y)
            y = self.activation(norm(name="expand_bn")(y))
        y = conv(y.shape[-1], 3, self.stride, "depthwise", groups=y.shape[-1])(y)
        y = self.activation(norm(name="depthwise_bn")(y))
        y = norm(name="project_bn")(conv(self.features, 1, name="project")(y))
        return x + y if self.stride == 1 and x.shape == y.shape else y


class Stem(nn.Module):
    """A convolution of stride 2, and a block.

    Attributes:
      features: output channels of the convolution.
      norm: constructor of a batch norm layer.
      block: the block.
      activation: activation after the convolution.
    """

    features: int
    norm: Callable
    block: nn.Module
    activation: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, 3, 2, "conv1")(x)
        x = self.activation(self.norm(use_running_average=not train, name="bn1")(x))
        return self.block(x, train)


class Head(nn.Module):
    """A 1×1 convolution, and a classifier of its mean over height and width.

    Attributes:
      features: output channels D of the convolution.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
      activation: activation after the convolution.
    """

    features: int
    num_classes: int
    norm: Callable
    activation: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, 1, name="conv2")(x)
        x = self.activation(self.norm(use_running_average=not train, name="bn2")(x))
        features = global_average_pool(x)
        return Dense(self.num_classes, name="fc")(features), features


def small(width: float, num_classes: int, norm: Callable):
    """Build the MobileNetV2 of the knowledge-distillation benchmark.

    Args:
      width: factor of the channels.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    return _build(
        channels=lambda features: int(features * width),
        first_expansion=1,
        strides=(1, 2, 2, 2),
        activation=nn.relu,
        head_features=int(1280 * max(width, 1)),
        num_classes=num_classes,
        norm=norm,
        initialisation=INITIALISATION,
    )


def imagenet(
    width: float,
    num_classes: int,
    norm: Callable,
    initialisation: Initialisation = INITIALISATION,
):
    """Build torchvision's MobileNetV2.

    Args:
      width: factor of the channels, which are rounded to multiples of 8.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
      initialisation: of its layers.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """

    def channels(features):
        nearest = max(8, int(features * width + 4) // 8 * 8)
        # Rounding must not remove more than a tenth of the channels.
        return nearest if nearest >= 0.9 * features * width else nearest + 8

    return _build(
        channels=channels,
        first_expansion=None,
        strides=(2, 2, 2, 2),
        activation=nn.relu6,
        head_features=channels(1280) if width > 1 else 1280,
        num_classes=num_classes,
        norm=norm,
        initialisation=initialisation,
    )


def _build(
    channels: Callable,
    first_expansion: int | None,
    strides: Sequence[int],
    activation: Callable,
    head_features: int,
    num_classes: int,
    norm: Callable,
    initialisation: Initialisation,
):
    """Build MobileNetV2.

    Args:
      channels: function from the features at width 1 to the features.
      first_expansion: expansion of the stem's block.
      strides: stride of every stage.
      activation: activation of all layers.
      head_features: number of features D that the classifier sees.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
      initialisation: of its layers.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    block = partial(InvertedResidual, activation=activation)
    stages = [
        Stage(
            block,
            [
                (channels(features), stride if i == 0 else 1)
                for i, features in enumerate(f for f, blocks in groups for _ in range(blocks))
            ],
            norm,
        )
        for groups, stride in zip(STAGES, strides, strict=True)
    ]
    first = block(channels(16), 1, norm, expansion=first_expansion)
    stem = Stem(channels(32), norm, first, activation)
    head = Head(head_features, num_classes, norm, activation)
    heads = auxiliary_heads(stages, head)
    return Network(stem, stages, head, heads, initialisation=initialisation)
