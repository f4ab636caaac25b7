"""MobileNet v1 (Howard et al. 2017): depthwise-separable convolutions.

Three programs' strides: DCM's on CIFAR (8×8 before the classifier, `mobilenet`), with its
auxiliary heads; SwitOKD's on CIFAR (2×2); ImageNet's (`MobileNetV1`).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn

from orc_jax.models.layers import Head, conv
from orc_jax.models.network import Auxiliary, Block, Network, Stage, auxiliary_heads
from orc_jax.models.resnet import Stem

# Features and stride of every block, by stage.
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


def _place(match):
    """A block's place among all blocks, which PyTorch counts through."""
    return sum(len(plan) for plan in IMAGENET[: int(match[1])]) + int(match[2])


TORCH_NAMES_SWITOKD = [
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"layers.{_place(m)}."),
    (r"^stem\.", ""),
    (r"^head\.fc\b", "linear"),
]
TORCH_NAMES_IMAGENET = [
    (r"^stages_(\d+)\.block(\d+)\.", lambda m: f"model.{1 + _place(m)}."),
    (r"^stem\.", "model.0."),
    (r"\bconv1\b", "0"),
    (r"\bbn1\b", "1"),
    (r"\bconv2\b", "3"),
    (r"\bbn2\b", "4"),
    (r"^head\.", ""),
]


class SeparableBlock(Block):
    """A depthwise 3×3 convolution, then a 1×1 one, each with norm and activation."""

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
):
    """MobileNet v1 of full width.

    Args:
      plans: features and stride of every block, by stage.
      stem_stride: 1 or 2.
      num_classes: outputs C.
      norm: constructor of a batch norm layer.

    Returns:
      The network, [B, H, W, channels] → [B, C].
    """
    stages = [Stage(SeparableBlock, plan, norm) for plan in plans]
    head = Head(num_classes)
    return Network(Stem(32, norm, stem_stride), stages, head, auxiliary_heads(stages, head))


def dcm(num_classes: int, norm: Callable):
    """DCM's MobileNet, whose auxiliary heads are its authors' own; see `mobilenet`.

    The first has four of the middle stage's six blocks and the whole last stage.
    """
    network = mobilenet(DCM, 1, num_classes, norm)
    _, middle, last = network.stages
    wide = tuple((2 * features, stride) for features, stride in last.plan)
    return network.clone(
        auxiliary=(
            Auxiliary(0, [middle.clone(plan=middle.plan[:4]), last.clone()], network.head.clone()),
            Auxiliary(1, [last.clone(plan=wide)], network.head.clone()),
        )
    )
