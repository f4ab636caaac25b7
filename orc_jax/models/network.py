"""What every network is: stem → stages → head."""

from collections.abc import Callable, Sequence

import flax.linen as nn


class Stage(nn.Module):
    """Blocks of one width; the first one changes the resolution by the stride."""

    block: Callable
    features: int
    stride: int
    blocks: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = self.block(self.features, stride, self.norm, name=f"block{i}")(x, train)
        return x


class Network(nn.Module):
    """A classifier in three parts, each a module called as `part(x, train)`.

    `train=True` normalises by the batch's statistics and updates the running ones
    (collection `batch_stats`, which must then be mutable).
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    head: nn.Module

    def __call__(self, images, train: bool):
        """Logits [B, C] of images [B, H, W, channels]."""
        x = self.stem(images, train)
        for stage in self.stages:
            x = stage(x, train)
        return self.head(x, train)
