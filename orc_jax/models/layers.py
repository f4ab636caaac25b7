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

    vmap would make one grouped convolution of a stack of peers, which XLA runs some ten
    times slower on a CPU (see benchmarks/step.py). The gradient has a rule of its own,
    because JAX cannot differentiate through a `custom_vmap`.
    """

    def plain(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, *args, **kwargs)

    def plain_gradient(lhs, rhs, d_out):
        return jax.vjp(plain, lhs, rhs)[1](d_out)

    convolve = jax.custom_vjp(_one_by_one(plain))
    convolve.defvjp(
        lambda lhs, rhs: (_one_by_one(plain)(lhs, rhs), (lhs, rhs)),
        lambda inputs, d_out: _one_by_one(plain_gradient)(*inputs, d_out),
    )
    return convolve(lhs, rhs)


def _one_by_one(function):
    """The function, which vmap calls once per row instead of batching what is inside."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def _(size, batched, *args):
        rows = [
            function(
                *(x[i] if is_batched else x for x, is_batched in zip(args, batched, strict=True))
            )
            for i in range(size)
        ]
        out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def conv(
    features: int, kernel: int, stride: int = 1, name: str | None = None, groups: int = 1
) -> nn.Conv:
    """A convolution without bias, He-normal by its outputs, padded as PyTorch pads it.

    The padding is explicit because "SAME" puts it elsewhere when the stride is 2. As many
    groups as channels make it depthwise.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        feature_group_count=groups,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=per_peer_conv,
        name=name,
    )


def dense(features: int, name: str | None = None, use_bias: bool = True) -> nn.Dense:
    """A dense layer with PyTorch's initial spread, U(±1/√inputs), and zero bias."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        name=name,
    )


def global_average_pool(x):
    """Mean over height and width: [B, H, W, D] → [B, D]."""
    return x.mean(axis=(1, 2))
