"""DenseNet-BC (Huang et al. 2017, arXiv 1608.06993), for small images.

As in OKDDip, the networks have three stages.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from orc_jax.models.initialisation import Initialisation, he_by_fan_in, zero_bias
from orc_jax.models.layers import avg_pool, conv
from orc_jax.models.network import Block, Network, Stage, auxiliary_heads
from orc_jax.models.wide_resnet import Head

TORCH_NAMES = [
    (r"^stages_(\d+)\.block\d+\.transition_", lambda m: f"transition{int(m[1]) + 1}."),
    (
        r"^stages_(\d+)\.block(\d+)\.",
        lambda m: f"denseblock{int(m[1]) + 1}.denselayer{int(m[2]) + 1}.",
    ),
    (r"^stem\.conv\b", "conv0"),
    (r"^head\.bn1\b", "norm_final"),
    (r"^head\.fc\b", "classifier"),
    (r"^(?!classifier)", "features."),
]

INITIALISATION = Initialisation(conv=he_by_fan_in, dense_bias=zero_bias)


class DenseLayer(Block):
    """A layer that appends `features` channels to its input; with stride 2, a transition follows.

    The layer is a 1×1 convolution to 4 · `features` channels and a 3×3 convolution, each after
    norm and activation. The transition halves the channels and the resolution.
    """

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        y = nn.relu(norm(name="norm1")(x))
        y = conv(4 * self.features, 1, name="conv1")(y)
        y = conv(self.features, 3, name="conv2")(nn.relu(norm(name="norm2")(y)))
        x = jnp.concatenate([x, y], axis=-1)
        if self.stride == 2:
            x = nn.relu(norm(name="transition_norm")(x))
            x = avg_pool(conv(x.shape[-1] // 2, 1, name="transition_conv")(x))
        return x


class Stem(nn.Module):
    """A 3×3 convolution; the first layer's norm and activation follow it.

    Attributes:
      features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x, train):
        return conv(self.features, 3, name="conv")(x)


def densenet(depth: int, growth: int, num_classes: int, norm: Callable):
    """Build DenseNet-BC of a depth and a growth rate.

    Args:
      depth: 6n + 4 for n layers per stage.
      growth: channels that every layer appends.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    layers = (depth - 4) // 6
    stages = [
        Stage(DenseLayer, (*[(growth, 1)] * (layers - 1), (growth, stride)), norm)
        for stride in (2, 2, 1)
    ]
    head = Head(num_classes, norm)
    return Network(
        Stem(2 * growth),
        stages,
        head,
        auxiliary_heads(stages, head),
        initialisation=INITIALISATION,
    )
