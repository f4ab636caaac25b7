"""Layers that every family shares: convolution, pooling, classifier (batch norm: `norm.py`).

All but the classifier compute in the type of their input, whatever that of their parameters:
images in bfloat16 make a network of bfloat16 with float32 parameters, statistics and logits.
"""

from functools import reduce

import flax.linen as nn
import jax.numpy as jnp

from orc_jax.models.convolution import per_peer_conv, shifted, target


def _in_inputs_type(inputs, *params, dtype):
    """Flax's rule for a layer's arrays (`dtype` is its own, None here)."""
    inputs = jnp.asarray(inputs)
    return inputs, *(None if p is None else p.astype(inputs.dtype) for p in params)


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    name: str | None = None,
    groups: int = 1,
    use_bias: bool = False,
) -> nn.Conv:
    """A convolution, He-normal by its outputs, padded as PyTorch pads it.

    The padding is explicit because "SAME" puts it elsewhere when the stride is 2. As many
    groups as channels make it depthwise.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=use_bias,
        feature_group_count=groups,
        promote_dtype=_in_inputs_type,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=per_peer_conv,
        name=name,
    )


def dense(features: int, name: str | None = None, use_bias: bool = True) -> nn.Dense:
    """A dense layer with PyTorch's initial spread, U(±1/√inputs), and zero bias.

    It computes in float32 always, so that logits are never rounded to bfloat16.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.float32,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        name=name,
    )


def max_pool(x, size: int = 2):
    """The largest of each window, to half the resolution: [B, H, W, D] → [B, H/2, W/2, D].

    Windows of 2×2 touch and are not padded (an odd last row is dropped); those of 3×3
    overlap and are, as in PyTorch. As a maximum of shifted images its gradient is forty times
    faster on a CPU than XLA's own.
    """
    if target() == "any":
        # The outermost pixels once more change no maximum.
        x = x if size == 2 else _framed(x, 1)
        return nn.max_pool(x, window_shape=(size, size), strides=(2, 2))
    return reduce(jnp.maximum, shifted(x, (size, size), (2, 2), _padding(size), -jnp.inf))


def avg_pool(x, size: int = 2):
    """The mean of each window (the padding counts, as in PyTorch); see `max_pool`."""
    if target() == "any":
        x = x if size == 2 else _framed(x, 0)
        return nn.avg_pool(x, window_shape=(size, size), strides=(2, 2))
    return sum(shifted(x, (size, size), (2, 2), _padding(size))) / size**2


def _framed(x, factor):
    """With a row and a column more on each side, the outermost ones times a factor.

    Concatenated, because jax2onnx cannot pad where the batch size is open.
    """
    x = jnp.concatenate([factor * x[:, :1], x, factor * x[:, -1:]], axis=1)
    return jnp.concatenate([factor * x[:, :, :1], x, factor * x[:, :, -1:]], axis=2)


def _padding(size):
    padding = (size - 1) // 2
    return ((padding, padding),) * 2


def global_average_pool(x):
    """Mean over height and width, in float32: [B, H, W, D] → [B, D]."""
    return x.mean(axis=(1, 2), dtype=jnp.float32)


class Head(nn.Module):
    """The classifier on the mean over height and width."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = global_average_pool(x)
        return dense(self.num_classes, "fc")(features), features
