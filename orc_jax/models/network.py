"""What every network is: stem → stages → head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Outputs:
    """What a network gives for a batch of images.

    A method sees the outputs of all peers as one `Outputs`, see `orc_jax.methods.method.Batch`.
    A field that is added here reaches every method, and its gradient every network, as it is.

    Attributes:
      logits: [B, C].
      features: [B, D], what the classifier sees.
      trunk: [B, D'], what the last stage sees, averaged over height and width.
      auxiliary: [B, H, C], logits of the auxiliary heads; None without them.
    """

    logits: Any
    features: Any = None
    trunk: Any = None
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

    `train=True` normalises by the batch's statistics and updates the running ones (collection
    `batch_stats`, which must then be mutable).

    Attributes:
      stem: images [B, H, W, channels] → activations.
      stages: activations → activations. The stem and all stages but the last are the trunk; the
        last stage and the head are what a branch consists of.
      head: activations → (logits [B, C], features [B, D]).
      auxiliary: the heads besides its own that the network can have. Their variables exist only
        where it was initialised with `auxiliary=True`.
      trunk_gradient: factor of the gradient that the last stage sends into the trunk.
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    head: nn.Module
    auxiliary: Sequence[Auxiliary] = ()
    trunk_gradient: float = 1.0

    def rematerialised(self) -> "Network":
        """Return the same network, keeping only the blocks' outputs for its backward pass."""

        def stages_of(module):
            return [part.clone(remat=True) for part in module.stages]

        auxiliary = [head.clone(stages=stages_of(head)) for head in self.auxiliary]
        return self.clone(stages=stages_of(self), auxiliary=auxiliary)

    def __call__(self, images, train: bool):
        """Compute the logits [B, C] of images [B, H, W, channels]."""
        return self.outputs(images, train).logits

    def outputs(self, images, train: bool, auxiliary: bool = False) -> Outputs:
        """Compute all that a method may read.

        Args:
          images: [B, H, W, channels].
          train: see the class.
          auxiliary: whether the auxiliary heads answer too.
        """
        # The stem's output, then every stage's.
        activations = [self.stem(images, train)]
        for part in self.stages[:-1]:
            activations.append(part(activations[-1], train))
        trunk = activations[-1]
        last = self.stages[-1](scaled_gradient(trunk, self.trunk_gradient), train)
        logits, features = self.head(last, train)
        heads = None
        if auxiliary:
            activations.append(last)
            answers = [head(activations[1 + head.after], train) for head in self.auxiliary]
            heads = jnp.stack(answers, axis=1)
        return Outputs(logits, features, trunk.mean(axis=(1, 2), dtype=jnp.float32), heads)

    def last_stage(self, images):
        """Compute the output of the last stage in eval mode, [B, h, w, D]."""
        x = self.stem(images, False)
        for part in self.stages:
            x = part(x, False)
        return x

    def trunk_keys(self) -> set[str]:
        """Return the top-level names of the trunk's variables."""
        return {"stem"} | {f"stages_{i}" for i in range(len(self.stages) - 1)}


def scaled_gradient(x, factor: float):
    """Return x; multiply the gradient that flows back through it by a factor."""
    if factor == 1:
        return x
    identity = jax.custom_vjp(lambda x: x)
    identity.defvjp(lambda x: (x, None), lambda _, gradient: (factor * gradient,))
    return identity(x)


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
