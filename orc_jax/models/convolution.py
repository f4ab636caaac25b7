"""The convolution that all layers use: one per peer, and lowered to operations fast on a CPU.

On a CPU, XLA runs grouped convolutions about thirty times slower than necessary, and 1×1
convolutions at half the speed of a matrix product. `python -m benchmarks.networks` measures the
lowerings of this module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from orc_jax.models.norm import sum_of_pixels

_TARGET = ContextVar("target", default="")


@contextmanager
def made_for(target: Literal["cpu", "any"]) -> Iterator[None]:
    """Lower what is traced within the context for a target other than this process's platform.

    Args:
      target: "cpu", or "any" to use only XLA's standard operations, which every platform and
        every converter to another format supports. Under "any", the gradients of a stack of
        peers cannot be computed.
    """
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)


def target() -> str:
    """Return what layers are lowered for: the target of `made_for`, or else the JAX platform."""
    return _TARGET.get() or jax.default_backend()


def per_peer_conv(lhs, rhs, strides, padding, **kwargs):
    """Compute `lax.conv_general_dilated`, lowered well for a stack of peers under `jax.vmap`.

    vmap would turn a stack of peers into one grouped convolution, which XLA runs about ten times
    slower on a CPU (see benchmarks/step.py). Instead, this remains one plain convolution per
    peer. On a CPU, depthwise and 1×1 convolutions, and those with an output of at most 2×2,
    become sums or matrix products, which vmap batches well.

    Args:
      lhs: images, [B, H, W, channels].
      rhs: kernel, [height, width, channels / groups, features].
      strides: strides of height and width, as `flax.linen.Conv` passes them.
      padding: (before, after) of height and width, as `flax.linen.Conv` passes it.
      **kwargs: remaining arguments of `lax.conv_general_dilated`, as `flax.linen.Conv` passes
        them.

    Returns:
      [B, H', W', features].
    """
    if target() == "cpu":
        if rhs.shape[:2] == (1, 1):
            return _pointwise(lhs, rhs, strides, kwargs["feature_group_count"])
        if rhs.shape[2] == 1 and rhs.shape[3] == lhs.shape[-1]:
            return _depthwise(lhs, rhs, strides, padding)
        if kwargs["feature_group_count"] == 1 and _pixels_out(lhs, rhs, strides, padding) <= 4:
            return _patch_product(lhs, rhs, strides, padding)

    def plain(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **kwargs)

    def plain_gradient(lhs, rhs, d_out):
        return jax.vjp(plain, lhs, rhs)[1](d_out)

    # JAX cannot differentiate through `custom_vmap`, so the gradient needs a rule of its own.
    convolve = jax.custom_vjp(_unbatched(plain))
    convolve.defvjp(
        lambda lhs, rhs: (_unbatched(plain)(lhs, rhs), (lhs, rhs)),
        lambda inputs, d_out: _unbatched(plain_gradient)(*inputs, materialised(d_out)),
    )
    return convolve(materialised(lhs), rhs)


def materialised(x):
    """Return x; on a CPU, have XLA write it to memory here, once.

    A convolution reads its arguments from memory, and its gradient reads them again in another
    layout. Left alone, XLA computes them anew for each of these readers: in a residual network,
    that means every sum, norm and activation since the stage began. XLA of JAX 0.12 obeys; that
    of JAX 0.10 does not.

    Args:
      x: any array.
    """
    return lax.optimization_barrier(x) if target() == "cpu" else x


def _unbatched(function):
    """Return the function in a form that vmap calls once per row, without batching its body."""
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


def _pointwise(x, kernel, strides, groups):
    """Compute a 1×1 convolution as one matrix product per group of channels."""
    x = x[:, :: strides[0], :: strides[1]]
    if groups == 1:
        return x @ kernel[0, 0]
    x = x.reshape(*x.shape[:-1], groups, -1)
    kernel = kernel[0, 0].reshape(x.shape[-1], groups, -1)
    out = jnp.einsum("bhwgi,igo->bhwgo", x, kernel)
    return out.reshape(*out.shape[:-2], -1)


def _pixels_out(x, kernel, strides, padding) -> int:
    """Return the number of pixels H'·W' of a convolution's output."""
    sides = zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    height, width = ((n + sum(pad) - size) // stride + 1 for n, size, stride, pad in sides)
    return height * width


def _patch_product(x, kernel, strides, padding):
    """Compute a convolution as one matrix product of the input's patches and the kernel.

    On a CPU this is 2 to 25 times as fast as XLA's convolution for outputs of 2×2, and not
    faster for outputs of 4×4 and more.
    """
    patches = jnp.concatenate(shifted(x, kernel.shape[:2], strides, padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _depthwise(x, kernel, strides, padding):
    """Compute a depthwise convolution as a weighted sum of shifted images."""
    size = kernel.shape[:2]

    def forward(x, kernel):
        # XLA's convolutions accumulate in float32 too, whatever the type of their inputs.
        images = shifted(x.astype(jnp.float32), size, strides, padding)
        weights = kernel.astype(jnp.float32).reshape(len(images), -1)
        out = sum(image * weight for image, weight in zip(images, weights, strict=True))
        return out.astype(x.dtype)

    def backward(inputs, d_out):
        x, kernel = inputs
        d_x = jax.vjp(lambda x: forward(x, kernel), x)[1](d_out)[0]
        images = shifted(x.astype(jnp.float32), size, strides, padding)
        d_weights = jnp.stack([sum_of_pixels(image * d_out) for image in images])
        return d_x, d_weights.reshape(kernel.shape).astype(kernel.dtype)

    convolve = jax.custom_vjp(forward)
    convolve.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), backward)
    return convolve(x, kernel)


def shifted(x, size, strides, padding, fill=0):
    """Return the input once per position in a sliding window, shifted to that position.

    Args:
      x: [B, H, W, channels].
      size: height and width of the window.
      strides: strides of height and width.
      padding: (before, after) of height and width.
      fill: value of the padding.

    Returns:
      List of height · width arrays [B, H', W', channels], row by row of the window.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=jnp.asarray(fill, x.dtype))
    rows, columns = x.shape[1] - size[0] + 1, x.shape[2] - size[1] + 1
    return [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i in range(size[0])
        for j in range(size[1])
    ]
