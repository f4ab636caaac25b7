"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861): depthwise-separable convolutions.

There are three variants with different strides: DCM's for CIFAR (`mobilenet`; 8×8 pixels before
the classifier), with DCM's auxiliary heads; SwitOKD's for CIFAR (`switokd_mobilenet`; 2×2
pixels); and the one for ImageNet (`MobileNetV1`).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn

from orc_jax.models.initialisation import PYTORCH, Initialisation
from orc_jax.models.layers import Head, conv
from orc_jax.models.network import Auxiliary, Block, Network, Stage, auxiliary_heads
from orc_jax.models.resnet import Stem

# For every stage, the (features, stride) of its blocks.
DCM = (
    ((64, 1), (128, 1), (128, 1), (256, 1), (256, 1)),
    ((512, 2), *[(512, 1)] * 5),
    ((1024, 2), (1024, 1)),
)
IMAGENET = (
    ((64, 1),),
    ((128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    *DCM[1:],
)

TORCH_NAMES_DCM = [
    (r"^auxiliary_(\d+)\.", lambda m: f"ep{int(m[1]) + 1}_"),
    (r"\bep2_stages_0\.", "ep2_layer3."),
    (r"\bep1_stages_(\d+)\.", lambda m: f"ep1_layer{int(m[1]) + 2}."),
    (r"\bstages_(\d+)\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"^stem\.", ""),
    (r"\bblock(\d+)\.", r"\1."),
    (r"\bhead\.fc\b", "linear"),
    (r"_head\.fc\b", "_linear"),
]


def _block_index(match):
    """Return a block's index among the blocks of all stages, by which PyTorch names it."""
    return sum(len(plan) for plan in IMAGENET[: int(match[1])]) + int(match[2])


TORCH_NAMES_SWITOKD = [
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layers.{_block_index(m)}."),
    (r"^stem\.", ""),
    (r"^head\.fc\b", "linear"),
]
TORCH_NAMES_IMAGENET = [
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"model.{1 + _block_index(m)}."),
    (r"^stem\.", "model.0."),
    (r"\bconv1\b", "0"),
    (r"\bbn1\b", "1"),
    (r"\bconv2\b", "3"),
    (r"\bbn2\b", "4"),
    (r"^head\.", ""),
]


class SeparableBlock(Block):
    """A depthwise 3×3 and a 1×1 convolution, each with norm and activation."""

    @nn.compact
    def __call__(self, x, train):
        norm = self.norms(train)
        depthwise = conv(x.shape[-1], 3, self.stride, "conv1", groups=x.shape[-1])
        x = nn.relu(norm(name="bn1")(depthwise(x)))
        return nn.relu(norm(name="bn2")(conv(self.features, 1, 1, "conv2")(x)))


def mobilenet(
    plans: Sequence[Sequence[tuple[int, int]]],
    stem_stride: int,
    num_classes: int,
    norm: Callable,
    initialisation: Initialisation = PYTORCH,
):
    """Build MobileNet v1 of width 1.

    Args:
      plans: for every stage, the (features, stride) of its blocks.
      stem_stride: stride of the stem, 1 or 2.
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.
      initialisation: of its layers.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    stages = [Stage(SeparableBlock, plan, norm) for plan in plans]
    head, stem = Head(num_classes), Stem(32, norm, stem_stride)
    heads = auxiliary_heads(stages, head)
    return Network(stem, stages, head, heads, initialisation=initialisation)


def dcm(num_classes: int, norm: Callable):
    """Build DCM's MobileNet, with the auxiliary heads of DCM's authors.

    Unlike in `auxiliary_heads`, the first head has four of the middle stage's six blocks and the
    whole last stage.

    Args:
      num_classes: number of classes C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    network = mobilenet(DCM, 1, num_classes, norm)
    _, middle, last = network.stages
    double = tuple((2 * features, stride) for features, stride in last.plan)
    return network.clone(
        auxiliary=(
            Auxiliary(0, [middle.clone(plan=middle.plan[:4]), last.clone()], network.head.clone()),
            Auxiliary(1, [last.clone(plan=double)], network.head.clone()),
        )
    )
