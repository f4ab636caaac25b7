"""MobileNet v1 for CIFAR (Howard et al. 2017): depthwise-separable convolutions.

Widths, strides and auxiliary heads as the DCM authors have them: 8×8 before the classifier.
"""

from collections.abc import Callable

import flax.linen as nn

from orc_jax.models.layers import conv
from orc_jax.models.network import Auxiliary, Block, Network, Stage
from orc_jax.models.resnet import Head, Stem


class SeparableBlock(Block):
    """A depthwise 3×3 convolution, then a 1×1 one, each with norm and activation."""

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        depthwise = conv(x.shape[-1], 3, self.stride, "conv1", groups=x.shape[-1])
        x = nn.relu(norm(name="bn1")(depthwise(x)))
        return nn.relu(norm(name="bn2")(conv(self.features, 1, 1, "conv2")(x)))


def mobilenet(num_classes: int, norm: Callable):
    """MobileNet v1 of full width.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """

    def stage(*plan):
        return Stage(SeparableBlock, plan, norm)

    middle, last = [(512, 2)] + [(512, 1)] * 5, [(1024, 2), (1024, 1)]
    head = Head(num_classes)
    return Network(
        stem=Stem(32, norm),
        stages=[
            stage((64, 1), (128, 1), (128, 1), (256, 1), (256, 1)),
            stage(*middle),
            stage(*last),
        ],
        head=head,
        auxiliary=(
            Auxiliary(0, [stage(*middle[:4]), stage(*last)], head.clone()),
            Auxiliary(1, [stage((2048, 2), (2048, 1))], head.clone()),
        ),
    )
