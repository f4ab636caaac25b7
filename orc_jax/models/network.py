"""The structure that all networks share: stem → stages → head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from orc_jax.errors import UserError
from orc_jax.models.convolution import materialised
from orc_jax.models.initialisation import DEFAULT, Initialisation, initialised


class Outputs(flax.struct.PyTreeNode):
    """Outputs of a network for a batch of images.

    A method receives the outputs of all peers stacked in one `Outputs`; see
    `orc_jax.methods.method.Batch`. A field added here reaches every method, and its gradient
    reaches every network, without further changes.

    Attributes:
      logits: [B, C].
      features: input of the classifier, [B, D].
      trunk: input of the last stage, averaged over height and width, [B, D'].
      auxiliary: logits of the H auxiliary heads, [B, H, C]; None if they were not computed.
    """

    logits: Any
    features: Any = None
    trunk: Any = None
    auxiliary: Any = None


class Block(nn.Module):
    """Base class of the blocks that make up a stage.

    Attributes:
      features: output channels.
      stride: factor by which the block reduces the resolution.
      norm: constructor of a batch norm layer.
    """

    features: int
    stride: int
    norm: Callable

    def norms(self, train):
        """Return the constructor of this block's norms, which takes their name.

        Args:
          train: whether they normalise by the statistics of the batch.
        """
        return partial(self.norm, use_running_average=not train)


class Stage(nn.Module):
    """A sequence of blocks.

    Attributes:
      block: constructor of a block, (features, stride, norm) → block.
      plan: (features, stride) of every block.
      norm: constructor of a batch norm layer.
      remat: whether the backward pass recomputes the activations within a block instead of
        keeping them in memory.
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
            block = self.block(features, stride, self.norm, name=f"block{i}")
            x = run(block, materialised(x))
        return x


def stage(block: Callable, features: int, stride: int, blocks: int, norm: Callable) -> Stage:
    """Build a stage of equal blocks, the first of which has the stride.

    Args:
      block: constructor of a block, (features, stride, norm) → block.
      features: output channels of every block.
      stride: stride of the first block.
      blocks: number of blocks.
      norm: constructor of a batch norm layer.
    """
    return Stage(block, ((features, stride), *[(features, 1)] * (blocks - 1)), norm)


class Auxiliary(nn.Module):
    """An auxiliary head (of DCM): stages and a classifier that branch off a network's stage.

    Attributes:
      after: index of the stage whose output is its input.
      stages: stages between that output and the classifier.
      head: the classifier, activations → (logits [B, C], features [B, D]).
    """

    after: int
    stages: Sequence[nn.Module]
    head: nn.Module

    def __call__(self, x, train):
        for module in self.stages:
            x = module(x, train)
        return self.head(x, train)[0]


class Network(nn.Module):
    """A classifier made of modules that are each called as `module(x, train)`.

    With `train=True`, the network normalises by the batch's statistics and updates the running
    ones, whose collection `batch_stats` must then be mutable.

    Attributes:
      stem: images [B, H, W, channels] → activations.
      stages: activations → activations. The stem and all stages but the last form the trunk; the
        last stage and the head form a branch.
      head: activations → (logits [B, C], features [B, D]).
      auxiliary: auxiliary heads that the network can have. Their variables exist only if the
        network was initialised by `outputs` with `auxiliary=True`.
      trunk_gradient: factor of the gradient that flows from the last stage into the trunk.
      initialisation: how the layers draw their first weights.
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    head: nn.Module
    auxiliary: Sequence[Auxiliary] = ()
    trunk_gradient: float = 1.0
    initialisation: Initialisation = DEFAULT

    def rematerialised(self) -> "Network":
        """Return this network, changed to keep only the blocks' outputs for the backward pass."""

        def stages_of(module):
            if not all(isinstance(part, Stage) for part in module.stages):
                raise UserError("remat needs a network whose stages are made of `Stage`")
            return [stage.clone(remat=True) for stage in module.stages]

        auxiliary = [head.clone(stages=stages_of(head)) for head in self.auxiliary]
        return self.clone(stages=stages_of(self), auxiliary=auxiliary)

    def __call__(self, images, train: bool):
        """Compute the logits of a batch of images.

        Args:
          images: [B, H, W, channels].
          train: see the class.

        Returns:
          [B, C].
        """
        return self.outputs(images, train).logits

    def outputs(self, images, train: bool, auxiliary: bool = False) -> Outputs:
        """Compute all outputs that a method may read.

        Args:
          images: [B, H, W, channels].
          train: see the class.
          auxiliary: whether to compute the logits of the auxiliary heads too.
        """
        with initialised(self.initialisation):
            return self._outputs(images, train, auxiliary)

    def _outputs(self, images, train, auxiliary):
        # activations[0] is the stem's output, activations[1 + i] that of stage i.
        activations = [self.stem(images, train)]
        for module in self.stages[:-1]:
            activations.append(module(activations[-1], train))
        trunk = activations[-1]
        last = self.stages[-1](scaled_gradient(trunk, self.trunk_gradient), train)
        answer = self.head(last, train)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError(f"the head {type(self.head).__name__} must return (logits, features)")
        logits, features = answer
        auxiliary_logits = None
        if auxiliary:
            activations.append(last)
            auxiliary_logits = jnp.stack(
                [head(activations[1 + head.after], train) for head in self.auxiliary], axis=1
            )
        trunk_mean = trunk.mean(axis=(1, 2), dtype=jnp.float32)
        return Outputs(logits, features, trunk_mean, auxiliary_logits)

    def last_stage(self, images):
        """Compute the output of the last stage in eval mode.

        Args:
          images: [B, H, W, channels].

        Returns:
          [B, h, w, D].
        """
        x = self.stem(images, False)
        for module in self.stages:
            x = module(x, False)
        return x

    def trunk_keys(self) -> set[str]:
        """Return the top-level names of the trunk's variables."""
        return {"stem"} | {f"stages_{i}" for i in range(len(self.stages) - 1)}


def scaled_gradient(x, factor: float):
    """Return x unchanged, and multiply the gradient that flows back through it by a factor.

    Args:
      x: array of any shape.
      factor: factor of the gradient.
    """
    if factor == 1:
        return x
    identity = jax.custom_vjp(lambda x: x)
    identity.defvjp(lambda x: (x, None), lambda _, gradient: (factor * gradient,))
    return identity(x)


def auxiliary_heads(stages: Sequence[Stage], head: nn.Module) -> tuple[Auxiliary, ...]:
    """Build DCM's two auxiliary heads, as for its WRN (Yao & Sun 2020, arXiv 2008.07816).

    The first branches off the third stage from the end: it has a copy of the next-to-last stage,
    and the last stage with half of its blocks (at least one). The second branches off the
    next-to-last stage: it has a copy of the last stage of twice the width.

    Args:
      stages: the network's stages, at least three.
      head: the network's own head.
    """
    *_, middle, last = stages
    half = last.plan[: max(1, len(last.plan) // 2)]
    double = tuple((2 * features, stride) for features, stride in last.plan)
    return (
        Auxiliary(len(stages) - 3, [middle.clone(), last.clone(plan=half)], head.clone()),
        Auxiliary(len(stages) - 2, [last.clone(plan=double)], head.clone()),
    )
