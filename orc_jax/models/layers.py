"""Layers that every family shares: convolution, batch norm, classifier."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# PyTorch's defaults, which the reference programs use: eps 1e-5, 0.9 old + 0.1 new.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def per_peer_conv(lhs, rhs, *args, **kwargs):
    """`lax.conv_general_dilated` that stays a plain convolution per peer under `jax.vmap`.

    vmap would make one grouped convolution of a stack of peers, which XLA runs some
    20 times slower on a CPU (see benchmarks/step.py). The batching rule calls the plain
    operation, not this wrapper: differentiating through the wrapper fails, so take
    gradients outside the vmap (`jax.vjp` of the vmapped network), never inside.
    """
    plain = partial(_conv, args=args, kwargs=kwargs)
    wrapped = jax.custom_batching.custom_vmap(plain)

    @wrapped.def_vmap
    def _(size, batched, lhs, rhs):
        return jnp.stack(
            [
                plain(lhs[i] if batched[0] else lhs, rhs[i] if batched[1] else rhs)
                for i in range(size)
            ]
        ), True

    return wrapped(lhs, rhs)


def _conv(lhs, rhs, args, kwargs):
    return lax.conv_general_dilated(lhs, rhs, *args, **kwargs)


def conv(features: int, kernel: int, stride: int = 1, name: str | None = None) -> nn.Conv:
    """A convolution without bias, He-normal by its outputs, padded as PyTorch pads it.

    The padding is explicit because "SAME" puts it elsewhere when the stride is 2.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=per_peer_conv,
        name=name,
    )


def dense(features: int, name: str | None = None) -> nn.Dense:
    """A dense layer with PyTorch's initial spread, U(±1/√inputs), and zero bias."""
    return nn.Dense(
        features,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        name=name,
    )


def global_average_pool(x):
    """Mean over height and width: [B, H, W, D] → [B, D]."""
    return x.mean(axis=(1, 2))
