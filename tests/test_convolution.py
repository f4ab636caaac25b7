"""Our convolution against `lax.conv_general_dilated`, alone and per peer; our pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from orc_jax.models.convolution import per_peer_conv
from orc_jax.models.layers import avg_pool, conv, max_pool

CASES = [  # kernel, stride, groups, channels, features, size
    (3, 1, 1, 4, 6, 5),
    (3, 2, 1, 4, 6, 6),
    (1, 1, 1, 4, 6, 5),
    (1, 2, 1, 4, 6, 5),
    (1, 1, 3, 6, 9, 4),
    (1, 2, 3, 6, 9, 4),
    (3, 1, 6, 6, 6, 5),
    (3, 2, 6, 6, 6, 5),
    (3, 2, 6, 6, 6, 8),
    (3, 2, 6, 6, 6, 1),
    (5, 1, 4, 4, 4, 6),
    (7, 2, 1, 3, 4, 9),
    (3, 1, 1, 4, 6, 2),
    (3, 2, 1, 4, 6, 4),
    (3, 2, 1, 4, 6, 1),
    (7, 2, 1, 3, 4, 3),
]


def outputs_and_gradients(conv, x, kernel, stride, groups):
    def run(x, kernel):
        padding = kernel.shape[0] // 2
        return conv(
            x,
            kernel,
            (stride, stride),
            ((padding, padding),) * 2,
            dimension_numbers=nn.linear._conv_dimension_numbers(x.shape),
            feature_group_count=groups,
        )

    out, pullback = jax.vjp(run, x, kernel)
    return out, *pullback(jnp.cos(out))


@pytest.mark.parametrize("kernel, stride, groups, channels, features, size", CASES)
def test_same_as_xlas(kernel, stride, groups, channels, features, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, size, size, channels)).astype(np.float32)
    weights = rng.normal(size=(2, kernel, kernel, channels // groups, features))
    weights = weights.astype(np.float32)
    expected = [
        outputs_and_gradients(lax.conv_general_dilated, *args, stride, groups)
        for args in zip(x, weights, strict=True)
    ]

    def ours(x, weights):
        return outputs_and_gradients(per_peer_conv, x, weights, stride, groups)

    alone = jax.jit(ours)(x[0], weights[0])
    stacked = jax.jit(jax.vmap(ours))(x, weights)
    for i in range(3):
        np.testing.assert_allclose(alone[i], expected[0][i], rtol=1e-4, atol=1e-4)
        both = np.stack([one[i] for one in expected])
        np.testing.assert_allclose(stacked[i], both, rtol=1e-4, atol=1e-4)


def test_images_that_are_not_square():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 8, 4)).astype(np.float32)
    for kernel, groups in ((3, 4), (1, 2), (3, 1)):
        weights = rng.normal(size=(kernel, kernel, 4 // groups, 4)).astype(np.float32)
        ours = outputs_and_gradients(per_peer_conv, x, weights, 2, groups)
        expected = outputs_and_gradients(lax.conv_general_dilated, x, weights, 2, groups)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_depthwise_in_bfloat16_is_rounded_once():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 4)).astype("bfloat16")
    weights = rng.normal(size=(3, 3, 1, 4)).astype("bfloat16")
    half, _, _ = outputs_and_gradients(per_peer_conv, jnp.array(x), jnp.array(weights), 1, 4)
    exact, _, _ = outputs_and_gradients(
        per_peer_conv, x.astype(np.float32), weights.astype(np.float32), 1, 4
    )
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("height, width", [(4, 6), (5, 7), (3, 2)])
def test_pooling_is_flaxs(size, height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    padding = (size - 1) // 2
    for ours, theirs in ((max_pool, nn.max_pool), (avg_pool, nn.avg_pool)):

        def expected(x, theirs=theirs):
            return theirs(x, (size, size), (2, 2), ((padding, padding),) * 2)

        out, pullback = jax.vjp(lambda x, ours=ours: ours(x, size), x)
        same, other_pullback = jax.vjp(expected, x)
        np.testing.assert_allclose(out, same, rtol=1e-6, atol=1e-6)
        cotangent = np.cos(out)
        np.testing.assert_allclose(
            pullback(cotangent)[0], other_pullback(cotangent)[0], rtol=1e-6, atol=1e-6
        )


def test_large_sums_of_pixels():
    """Enough pixels for the weights' gradient to be summed half upon half."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 16, 16, 4)).astype(np.float32)
    weights = rng.normal(size=(3, 3, 1, 4)).astype(np.float32)
    ours = outputs_and_gradients(per_peer_conv, x, weights, 1, 4)
    expected = outputs_and_gradients(lax.conv_general_dilated, x, weights, 1, 4)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kernel, groups", [(3, 1), (1, 1), (1, 2), (3, 4)])
def test_bfloat16_images_make_a_bfloat16_convolution(kernel, groups):
    layer = conv(4, kernel, groups=groups)
    images = jnp.ones((2, 4, 4, 4), jnp.bfloat16)
    variables = layer.init(jax.random.key(0), images)

    def loss(variables):
        out = layer.apply(variables, images)
        assert out.dtype == jnp.bfloat16
        return out.sum().astype(jnp.float32)

    gradient = jax.grad(loss)(variables)["params"]["kernel"]
    assert variables["params"]["kernel"].dtype == gradient.dtype == jnp.float32
