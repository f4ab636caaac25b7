"""MobileNetV2 (Sandler et al. 2018): inverted residuals.

`small`: the usual knowledge-distillation benchmark's form for 32×32 images, whose width is
0.5. `imagenet`: torchvision's form, which SwitOKD runs on Tiny-ImageNet at width 1.4 (without
its dropout of 0.2 before the classifier).
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn

from orc_jax.models.layers import conv, dense, global_average_pool
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads

# Features at width 1 and blocks of every group, by stage: all of one resolution.
STAGES = (
    ((24, 2),),
    ((32, 3),),
    ((64, 4), (96, 3)),
    ((160, 3), (320, 1)),
)


def _group(match):
    """PyTorch's names of a block, which counts groups of equal blocks: (group, place)."""
    stage, block = int(match[1]), int(match[2])
    group = 1 + sum(len(groups) for groups in STAGES[:stage])
    for _, blocks in STAGES[stage]:
        if block < blocks:
            return group, block
        group, block = group + 1, block - blocks
    raise IndexError(match[0])


def _place(match):
    """A block's place among all blocks of the stages."""
    before = sum(blocks for groups in STAGES[: int(match[1])] for _, blocks in groups)
    return before + int(match[2])


TORCH_NAMES_SMALL = [
    (r"^stem\.conv1\b", "conv1.0"),
    (r"^stem\.bn1\b", "conv1.1"),
    (r"^stem\.block\.", "blocks.0.0."),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: "blocks.{}.{}.".format(*_group(m))),
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
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"features.{2 + _place(m)}."),
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
    """1×1 up to `expansion` times the channels, depthwise 3×3, 1×1 down; a shortcut where
    the shape stays.

    Attributes:
      expansion: None to leave the first convolution out.
      activation: after the first two.
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
    """A convolution of stride 2 and a block of its own."""

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
    features: int
    num_classes: int
    norm: Callable
    activation: Callable

    @nn.compact
    def __call__(self, x, train):
        x = conv(self.features, 1, name="conv2")(x)
        x = self.activation(self.norm(use_running_average=not train, name="bn2")(x))
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features


def small(width: float, num_classes: int, norm: Callable):
    """The benchmark's form. See `_build`."""
    return _build(
        channels=lambda features: int(features * width),
        first_expansion=1,
        strides=(1, 2, 2, 2),
        activation=nn.relu,
        head_features=int(1280 * max(width, 1)),
        num_classes=num_classes,
        norm=norm,
    )


def imagenet(width: float, num_classes: int, norm: Callable):
    """torchvision's form: channels in multiples of 8. See `_build`."""

    def channels(features):
        near = max(8, int(features * width + 4) // 8 * 8)
        return near if near >= 0.9 * features * width else near + 8

    return _build(
        channels=channels,
        first_expansion=None,
        strides=(2, 2, 2, 2),
        activation=nn.relu6,
        head_features=channels(1280) if width > 1 else 1280,
        num_classes=num_classes,
        norm=norm,
    )


def _build(
    channels: Callable,
    first_expansion: int | None,
    strides: Sequence[int],
    activation: Callable,
    head_features: int,
    num_classes: int,
    norm: Callable,
):
    """MobileNetV2.

    Args:
      channels: features at width 1 → features.
      first_expansion: of the stem's block.
      strides: of the stages.
      activation: of all layers.
      head_features: what the classifier sees.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.

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
    return Network(stem, stages, head, auxiliary_heads(stages, head))
