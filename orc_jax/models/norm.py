"""Batch norm, with a gradient of its own: two sums over the pixels each way, and no more passes."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's defaults: eps 1e-5, running statistics 0.9 old + 0.1 new.

    Statistics are taken, and applied, in float32; the result has the type of the input.
    (`flax.linen.BatchNorm` gives the same numbers. What XLA makes of its gradient takes 1.5
    times as long on a CPU.)

    Attributes:
      use_running_average: normalise by the running statistics, in place of the batch's.
      axis_name: mesh axes over which the batch's statistics are taken.
    """

    use_running_average: bool
    axis_name: Sequence[str] | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if self.use_running_average:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            return ((x - mean.value) * factor + bias).astype(x.dtype)
        out, *batch = batch_norm(x, scale, bias, self.axis_name, self.epsilon)
        if not self.is_initializing():
            for running, new in zip((mean, var), batch, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return out


def batch_norm(x, scale, bias, axis_name: Sequence[str] | None = None, epsilon: float = 1e-5):
    """Normalises by the statistics of the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).

    Args:
      x: [..., channels]; scale, bias: [channels].
      axis_name: mesh axes that split the batch, or None.

    Returns:
      scale · (x − μ) / √(σ² + ε) + bias, and the statistics μ and σ² [channels], which no
      gradient flows through.
    """
    total = x.size // x.shape[-1] * (lax.axis_size(axis_name) if axis_name else 1)

    def over_mesh(sums):
        return lax.psum(sums, axis_name) if axis_name else sums

    def forward(x, scale, bias):
        pixels = x.astype(jnp.float32)
        sums = over_mesh((sum_of_pixels(pixels), sum_of_pixels(pixels**2)))
        mean, square = (one / total for one in sums)
        var = jnp.maximum(square - mean**2, 0)  # rounding can make it negative
        factor = lax.rsqrt(var + epsilon)
        out = (pixels - mean) * (scale * factor) + bias
        return (out.astype(x.dtype), mean, var), (x, mean, factor, scale)

    def backward(kept, d_outs):
        x, mean, factor, scale = kept
        centred, d_out = x.astype(jnp.float32) - mean, d_outs[0].astype(jnp.float32)
        d_bias, d_factor = sum_of_pixels(d_out), sum_of_pixels(d_out * centred)
        all_bias, all_factor = over_mesh((d_bias, d_factor))
        d_x = d_out - (all_bias + centred * (factor**2 * all_factor)) / total
        return (scale * factor * d_x).astype(x.dtype), factor * d_factor, d_bias

    normalise = jax.custom_vjp(lambda *args: forward(*args)[0])
    normalise.defvjp(forward, backward)
    return normalise(x, scale, bias)


def sum_of_pixels(x):
    """[..., channels] → [channels]. On a CPU half upon half: XLA's own sum over leading axes
    does one channel at a time there, and is several times slower."""
    x = x.reshape(-1, x.shape[-1])
    while jax.default_backend() == "cpu" and x.shape[0] > 512 and x.shape[0] % 2 == 0:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x.sum(axis=0)
