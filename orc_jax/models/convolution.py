"""The convolution of every layer: one per peer, and lowered to what is fast on a CPU.

XLA runs grouped convolutions on a CPU some thirty times slower than it could, and 1×1 ones
at half the speed of a matrix product; `python -m benchmarks.networks` measures what is here.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax import lax

from orc_jax.models.norm import sum_of_pixels

_TARGET = ContextVar("target", default="")


@contextmanager
def made_for(target: str):
    """What is traced within is made for another machine than this one.

    Args:
      target: "cpu", or "any": of XLA's own operations, which every platform and every
        converter to another format knows; a stack's gradients need the former or neither.
    """
    before = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(before)


def target() -> str:
    """What layers are made for: "any", or a platform, in general this process's."""
    return _TARGET.get() or jax.default_backend()


def per_peer_conv(lhs, rhs, strides, padding, **kwargs):
    """`lax.conv_general_dilated`, lowered well for a stack of peers under `jax.vmap`.

    vmap would make one grouped convolution of a stack, which XLA runs some ten times slower on
    a CPU (see benchmarks/step.py): here it stays one plain convolution per peer. Depthwise
    and 1×1 convolutions, and those that give an image of 2×2 or less, are no convolutions any
    more on a CPU, and are mapped as they are.

    Args:
      lhs: [B, H, W, channels].
      rhs: [height, width, channels / groups, features].
      strides, padding, kwargs: as `flax.linen.Conv` gives them.
    """
    if target() == "cpu":
        if rhs.shape[:2] == (1, 1):
            return _pointwise(lhs, rhs, strides, kwargs["feature_group_count"])
        if rhs.shape[2] == 1 and rhs.shape[3] == lhs.shape[-1]:
            return _depthwise(lhs, rhs, strides, padding)
        if kwargs["feature_group_count"] == 1 and _pixels_out(lhs, rhs, strides, padding) <= 4:
            return _of_patches(lhs, rhs, strides, padding)

    def plain(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **kwargs)

    def plain_gradient(lhs, rhs, d_out):
        return jax.vjp(plain, lhs, rhs)[1](d_out)

    # The gradient has a rule of its own: JAX cannot differentiate through a `custom_vmap`.
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


def _pointwise(x, kernel, strides, groups):
    """A 1×1 convolution as a matrix product, one for each group of channels."""
    x = x[:, :: strides[0], :: strides[1]]
    if groups == 1:
        return x @ kernel[0, 0]
    x = x.reshape(*x.shape[:-1], groups, -1)
    kernel = kernel[0, 0].reshape(x.shape[-1], groups, -1)
    out = jnp.einsum("bhwgi,igo->bhwgo", x, kernel)
    return out.reshape(*out.shape[:-2], -1)


def _pixels_out(x, kernel, strides, padding) -> int:
    """How many pixels a convolution gives for each image."""
    sides = zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    height, width = ((n + sum(pad) - size) // stride + 1 for n, size, stride, pad in sides)
    return height * width


def _of_patches(x, kernel, strides, padding):
    """A convolution as one matrix product with the patches that its places see.

    For outputs of 2×2 this is 2 to 25 times as fast as XLA's convolution; for those of 4×4
    and more it is not.
    """
    patches = jnp.concatenate(shifted(x, kernel.shape[:2], strides, padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _depthwise(x, kernel, strides, padding):
    """A depthwise convolution as a sum of shifted images, each times its weight."""
    size = kernel.shape[:2]

    def forward(x, kernel):
        # Summed in float32, as any convolution is.
        seen = shifted(x.astype(jnp.float32), size, strides, padding)
        weights = kernel.astype(jnp.float32).reshape(len(seen), -1)
        out = sum(image * weight for image, weight in zip(seen, weights, strict=True))
        return out.astype(x.dtype)

    def backward(inputs, d_out):
        x, kernel = inputs
        d_x = jax.vjp(lambda x: forward(x, kernel), x)[1](d_out)[0]
        seen = shifted(x.astype(jnp.float32), size, strides, padding)
        d_weights = jnp.stack([sum_of_pixels(image * d_out) for image in seen])
        return d_x, d_weights.reshape(kernel.shape).astype(kernel.dtype)

    convolve = jax.custom_vjp(forward)
    convolve.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), backward)
    return convolve(x, kernel)


def shifted(x, size, strides, padding, fill=0):
    """What each place of a window of this (height, width) sees, [B, H', W', channels] each.

    Args:
      x: [B, H, W, channels].
      strides, padding: of height and width; `fill` is what is padded with.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=jnp.asarray(fill, x.dtype))
    rows, columns = x.shape[1] - size[0] + 1, x.shape[2] - size[1] + 1
    return [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i in range(size[0])
        for j in range(size[1])
    ]
