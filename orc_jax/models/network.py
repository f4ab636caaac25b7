"""What every network is: stem → stages → head, and can be run up to a stage and on from it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp


@flax.struct.dataclass
class Outputs:
    """What a network, or the part of one, gives for images.

    Attributes:
      logits: [B, C].
      features: [B, D], what the classifier sees.
      auxiliary: [B, H, C], logits of the auxiliary heads; None without them.
    """

    logits: Any
    features: Any
    auxiliary: Any = None


class Block(nn.Module):
    """What a stage is made of; a family's block says what it computes.

    Attributes:
      features: channels of its output.
      stride: of its resolution.
      norm: constructor of a batch norm layer.
    """

    features: int
    stride: int
    norm: Callable

    def norms(self, train):
        """The constructor of this block's norms, which takes their name."""
        return partial(self.norm, use_running_average=not train)


class Stage(nn.Module):
    """Blocks in a row.

    Attributes:
      block: constructor, (features, stride, norm).
      plan: features and stride of every block.
      norm: constructor of a batch norm layer.
      remat: the backward pass computes what is within a block again instead of keeping it.
    """

    block: Callable
    plan: Sequence[tuple[int, int]]
    norm: Callable
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        def run(block, x):
            return block(x, train)

        run = nn.remat(run) if self.remat else run
        for i, (features, stride) in enumerate(self.plan):
            x = run(self.block(features, stride, self.norm, name=f"block{i}"), x)
        return x


def stage(block: Callable, features: int, stride: int, blocks: int, norm: Callable) -> Stage:
    """A stage of equal blocks, of which the first one changes the resolution by the stride."""
    return Stage(block, ((features, stride), *[(features, 1)] * (blocks - 1)), norm)


class Auxiliary(nn.Module):
    """A second way to an answer, from the output of a stage on (used by DCM).

    Attributes:
      after: index of that stage.
      stages, head: from there to logits, as in `Network`.
    """

    after: int
    stages: Sequence[nn.Module]
    head: nn.Module

    def __call__(self, x, train):
        for part in self.stages:
            x = part(x, train)
        return self.head(x, train)[0]


class Network(nn.Module):
    """A classifier in parts, each a module called as `part(x, train)`.

    `train=True` normalises by the batch's statistics and updates the running ones
    (collection `batch_stats`, which must then be mutable).

    Attributes:
      stem: images [B, H, W, channels] → activations.
      stages: activations → activations. The last one and the head are what a branch is.
      head: activations → (logits [B, C], features [B, D]).
      auxiliary: the heads besides its own that it can have; their variables exist only where
        `with_auxiliary` was initialised.
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    head: nn.Module
    auxiliary: Sequence[Auxiliary] = ()

    def rematerialised(self) -> "Network":
        """The same network, which keeps only the blocks' outputs for its backward pass."""

        def stages_of(module):
            return [part.clone(remat=True) for part in module.stages]

        auxiliary = [head.clone(stages=stages_of(head)) for head in self.auxiliary]
        return self.clone(stages=stages_of(self), auxiliary=auxiliary)

    def __call__(self, images, train: bool):
        """Logits [B, C] of images [B, H, W, channels]."""
        return self.whole(images, train).logits

    def whole(self, images, train: bool) -> Outputs:
        """Logits and features of images."""
        return self.branch(self.trunk(images, train), train)

    def trunk(self, images, train: bool):
        """What the last stage sees: everything before it."""
        x = self.stem(images, train)
        for part in self.stages[:-1]:
            x = part(x, train)
        return x

    def branch(self, x, train: bool) -> Outputs:
        """The last stage and the head, on from `trunk`."""
        return Outputs(*self.head(self.stages[-1](x, train), train))

    def with_auxiliary(self, images, train: bool) -> Outputs:
        """`whole` with the auxiliary heads."""
        x, at_stage = self.stem(images, train), []
        for part in self.stages:
            x = part(x, train)
            at_stage.append(x)
        logits, features = self.head(x, train)
        more = [head(at_stage[head.after], train) for head in self.auxiliary]
        return Outputs(logits, features, jnp.stack(more, axis=1))

    def branch_keys(self) -> set[str]:
        """Names of the variables that belong to `branch`; the others are the trunk's."""
        return {f"stages_{len(self.stages) - 1}", "head"}


def auxiliary_heads(stages: Sequence[Stage], head: nn.Module) -> tuple[Auxiliary, ...]:
    """DCM's two heads, for a network of at least three stages (arXiv 2008.07816, WRN).

    One goes off three stages before the end: a copy of the next-to-last stage, then the
    last one with half the blocks (at least one). The other goes off before the last stage:
    a copy of that in double width.
    """
    *_, middle, last = stages
    half = last.plan[: max(1, len(last.plan) // 2)]
    double = tuple((2 * features, stride) for features, stride in last.plan)
    return (
        Auxiliary(len(stages) - 3, [middle.clone(), last.clone(plan=half)], head.clone()),
        Auxiliary(len(stages) - 2, [last.clone(plan=double)], head.clone()),
    )
