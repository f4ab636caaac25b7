"""Wide residual networks, WRN-depth-width (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

The blocks are pre-activation blocks, so that the final norm and activation belong to the head.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from orc_jax.models.initialisation import Initialisation, he_by_fan_in, zero_bias
from orc_jax.models.layers import Dense, conv, global_average_pool
from orc_jax.models.network import Block, Network, auxiliary_heads, stage

TORCH_NAMES = [
    (r"^(stem|head)\.", ""),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"block{int(m[1]) + 1}.layer.{m[2]}."),
    (r"\bshortcut\b", "convShortcut"),
]

TORCH_NAMES_SWITOKD = [
    (r"^(stem|head)\.", ""),
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\bshortcut\b", "shortcut.0"),
    (r"^fc\b", "linear"),
]
BENCHMARK = Initialisation(dense_bias=zero_bias)
DCM = Initialisation(
    conv=he_by_fan_in,
    dense=he_by_fan_in,
    dense_bias=zero_bias,
    norm=nn.initializers.uniform(1.0),
)
# Xavier's uniform distribution with a gain of √2.
SWITOKD_CIFAR = Initialisation(conv=nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"))


class PreActivationBlock(Block):
    """Norm, activation and 3×3 convolution, twice, and a shortcut.

    Where the number of channels changes, the shortcut is a projection of the activated input.
    """

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        activated = nn.relu(norm(name="bn1")(x))
        y = conv(self.features, 3, self.stride, "conv1")(activated)
        y = conv(self.features, 3, 1, "conv2")(nn.relu(norm(name="bn2")(y)))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, "shortcut")(activated)
        return x + y


class PreActivationBlockSwitokd(Block):
    """SwitOKD's block: convolutions have a bias, and the second one has the stride.

    Where the shape changes, the shortcut is a projection of the input itself.
    """

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        y = conv(self.features, 3, 1, "conv1", use_bias=True)(nn.relu(norm(name="bn1")(x)))
        y = nn.relu(norm(name="bn2")(y))
        y = conv(self.features, 3, self.stride, "conv2", use_bias=True)(y)
        if x.shape != y.shape:
            x = conv(self.features, 1, self.stride, "shortcut", use_bias=True)(x)
        return x + y


class Stem(nn.Module):
    """A 3×3 convolution to 16 channels; the first block's norm and activation follow it.

    Attributes:
      use_bias: whether the convolution has a bias.
    """

    use_bias: bool = False

    @nn.compact
    def __call__(self, x, train):
        return conv(16, 3, name="conv1", use_bias=self.use_bias)(x)


class Head(nn.Module):
    """Norm, activation, and a classifier of the mean over height and width.

    Attributes:
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
    """

    num_classes: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
        features = global_average_pool(x)
        return Dense(self.num_classes, name="fc")(features), features


def wide_resnet(
    depth: int,
    width: int,
    num_classes: int,
    norm: Callable,
    initialisation: Initialisation = BENCHMARK,
):
    """Build WRN-depth-width.

    Args:
      depth: 6n + 4 for n blocks per stage.
      width: factor of the stages' 16, 32 and 64 channels.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
      initialisation: of its layers.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    head = Head(num_classes, norm)
    return _build(PreActivationBlock, depth, width, norm, Stem(), head, initialisation)


def wide_resnet_switokd(
    depth: int,
    width: int,
    num_classes: int,
    norm: Callable,
    initialisation: Initialisation = SWITOKD_CIFAR,
):
    """Build SwitOKD's WRN-depth-width; its arguments are those of `wide_resnet`.

    The running statistics of its last norm are 0.1 · old + 0.9 · new.
    """
    stem, head = Stem(use_bias=True), Head(num_classes, partial(norm, momentum=0.1))
    return _build(PreActivationBlockSwitokd, depth, width, norm, stem, head, initialisation)


def _build(block, depth, width, norm, stem, head, initialisation):
    stages = [
        stage(block, channels * width, stride, (depth - 4) // 6, norm)
        for channels, stride in ((16, 1), (32, 2), (64, 2))
    ]
    heads = auxiliary_heads(stages, head)
    return Network(stem, stages, head, heads, initialisation=initialisation)
