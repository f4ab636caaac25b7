"""Layers that all families share: convolution, pooling, classifier (batch norm is in `norm.py`).

All layers but the classifier compute in the type of their input, whatever the type of their
parameters. Given bfloat16 images, a network computes in bfloat16, and its parameters, statistics
and logits remain float32.
"""

from functools import reduce
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from orc_jax.models.convolution import per_peer_conv, shifted, target
from orc_jax.models.initialisation import current


def _to_type_of_inputs(*arrays: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Convert the parameters of a Flax layer to the type of its inputs.

    Flax calls this as the layer's `promote_dtype`, with the inputs and then the parameters.
    `dtype` is the layer's own, None here.
    """
    inputs, *params = arrays
    inputs = jnp.asarray(inputs)
    return [inputs, *(None if param is None else param.astype(inputs.dtype) for param in params)]


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    name: str | None = None,
    groups: int = 1,
    use_bias: bool = False,
) -> nn.Conv:
    """Build a convolution, padded as in PyTorch and initialised as its network is.

    The padding is explicit because "SAME" pads other sides than PyTorch when the stride is 2.

    Args:
      features: output channels.
      kernel: height and width of the kernel.
      stride: stride of height and width.
      name: name of the layer.
      groups: number of groups; the number of channels for a depthwise convolution.
      use_bias: whether to add a bias.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=use_bias,
        feature_group_count=groups,
        promote_dtype=_to_type_of_inputs,
        kernel_init=current().conv,
        conv_general_dilated=per_peer_conv,
        name=name,
    )


class Dense(nn.Module):
    """A dense layer, initialised as its network is.

    `flax.linen.Dense` cannot draw a bias that depends on the number of inputs. This layer always
    computes in float32, so that logits are never rounded to bfloat16.

    Attributes:
      features: number of outputs.
      use_bias: whether to add a bias.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        inputs, rules = x.shape[-1], current()
        out = x.astype(jnp.float32) @ self.param("kernel", rules.dense, (inputs, self.features))
        if self.use_bias:
            out += self.param("bias", rules.dense_bias(inputs), (self.features,))
        return out


def max_pool(x, size: int = 2):
    """Halve the resolution by the maximum of each window, as in PyTorch.

    Windows of 2×2 do not overlap and are not padded, so an odd last row or column is dropped.
    Windows of 3×3 overlap and are padded. The maximum is taken over shifted images because its
    gradient is then forty times faster on a CPU than that of XLA's pooling.

    Args:
      x: [B, H, W, D].
      size: height and width of the windows, 2 or 3.

    Returns:
      [B, H/2, W/2, D].
    """
    if target() == "any":
        return nn.max_pool(x, (size, size), strides=(2, 2), padding=_padding(size))
    return reduce(jnp.maximum, shifted(x, (size, size), (2, 2), _padding(size), -jnp.inf))


def avg_pool(x, size: int = 2):
    """Halve the resolution by the mean of each window, padding included, as in PyTorch.

    Args:
      x: [B, H, W, D].
      size: height and width of the windows, 2 or 3; see `max_pool`.

    Returns:
      [B, H/2, W/2, D].
    """
    if target() == "any":
        return nn.avg_pool(x, (size, size), strides=(2, 2), padding=_padding(size))
    return sum(shifted(x, (size, size), (2, 2), _padding(size))) / size**2


def _padding(size):
    padding = (size - 1) // 2
    return ((padding, padding),) * 2


def global_average_pool(x):
    """Compute the mean over height and width in float32.

    Args:
      x: [B, H, W, D].

    Returns:
      [B, D].
    """
    return x.mean(axis=(1, 2), dtype=jnp.float32)


class Head(nn.Module):
    """A classifier of the mean over height and width.

    Attributes:
      num_classes: number of classes C.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = global_average_pool(x)
        return Dense(self.num_classes, name="fc")(features), features
