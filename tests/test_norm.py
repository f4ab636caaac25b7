"""Batch norm against Flax's, and its gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import torch

from orc_jax.models.norm import BatchNorm, batch_norm, sum_of_pixels


def inputs(shape=(6, 5, 4, 3), seed=0):
    x, scale, bias, d_out = (jax.random.key(seed + i) for i in range(4))
    return (
        3 + 2 * jax.random.normal(x, shape),
        jax.random.normal(scale, shape[-1:]),
        jax.random.normal(bias, shape[-1:]),
        jax.random.normal(d_out, shape),
    )


def flax_norm(train):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_it_is_flaxs(train):
    x, scale, bias, d_out = inputs()
    ours, theirs = BatchNorm(not train), flax_norm(train)
    variables = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(0), x))
    stats = {"mean": jnp.arange(3.0), "var": jnp.arange(1.0, 4.0)}
    results = []
    for norm in (ours, theirs):

        def run(x, params, norm=norm):
            variables = {"params": params, "batch_stats": stats}
            return norm.apply(variables, x, mutable="batch_stats")

        out, pullback, updated = jax.vjp(run, x, {"scale": scale, "bias": bias}, has_aux=True)
        results.append((out, pullback(d_out), updated))
    if train:  # Flax makes the running variance of biased ones
        var = results[1][2]["batch_stats"]["var"]
        n = x.size // 3
        results[1][2]["batch_stats"]["var"] = 0.9 * stats["var"] + (var - 0.9 * stats["var"]) * (
            n / (n - 1)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)


@pytest.mark.parametrize("axis", [None, "i"])
def test_running_statistics_are_pytorchs(axis):
    """After a step in train mode on 10 images of 2×2, on one device and on five."""
    x, *_ = inputs((10, 2, 2, 3))
    theirs = torch.nn.BatchNorm2d(3)
    theirs(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2))
    ours = BatchNorm(False, axis)
    variables = BatchNorm(False).init(jax.random.key(0), x)

    def stats(x):
        return ours.apply(variables, x, mutable="batch_stats")[1]["batch_stats"]

    if axis:
        parts = jax.vmap(stats, axis_name=axis)(x.reshape(5, 2, 2, 2, 3))
        updated = jax.tree.map(lambda leaf: leaf[0], parts)
    else:
        updated = stats(x)
    np.testing.assert_allclose(updated["mean"], theirs.running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updated["var"], theirs.running_var, rtol=1e-5)


def test_a_large_mean_costs_no_digits_once_it_is_known():
    """A thousand standard deviations from zero, and the running mean near it."""
    x = np.random.default_rng(0).normal(1000, 1, (64, 4, 4, 2)).astype(np.float32)
    exact = x.astype(np.float64).var(axis=(0, 1, 2))
    scale, bias = jnp.ones(2), jnp.zeros(2)
    _, mean, var = batch_norm(x, scale, bias, shift=jnp.full(2, 999.0))
    np.testing.assert_allclose(var, exact, rtol=1e-4)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-6)
    assert np.abs(batch_norm(x, scale, bias)[2] / exact - 1).max() > 1e-3  # without it


def test_the_gradient_is_that_of_finite_differences():
    x, scale, bias, d_out = inputs((4, 3, 2, 2))
    jax.test_util.check_grads(
        lambda *args: (batch_norm(*args)[0] * d_out).sum(),
        (x, scale, bias),
        order=1,
        modes=["rev"],
        rtol=2e-2,
        atol=2e-2,
    )


def test_over_a_mesh_it_is_that_of_the_whole_batch():
    """Here a mapped axis; real devices: test_meshes."""
    x, scale, bias, d_out = inputs((8, 3, 2, 4))

    def gradients(x, d_out, axis):
        out, pullback = jax.vjp(lambda *args: batch_norm(*args, axis)[0], x, scale, bias)
        return out, pullback(d_out)

    out, (d_x, *d_params) = gradients(x, d_out, None)
    parts = (a.reshape(4, 2, *a.shape[1:]) for a in (x, d_out))
    split = jax.vmap(lambda x, d_out: gradients(x, d_out, "i"), axis_name="i")(*parts)
    np.testing.assert_allclose(split[0].reshape(out.shape), out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(split[1][0].reshape(d_x.shape), d_x, rtol=1e-4, atol=1e-5)
    for of_parts, whole in zip(split[1][1:], d_params, strict=True):
        np.testing.assert_allclose(of_parts.sum(axis=0), whole, rtol=1e-4, atol=1e-4)


def test_bfloat16_in_and_out_and_float32_between():
    x, scale, bias, _ = inputs((8, 4, 4, 2))
    x = x.astype(jnp.bfloat16)
    out, mean, var = batch_norm(x, scale, bias)
    assert out.dtype == jnp.bfloat16 and mean.dtype == var.dtype == jnp.float32
    exact = batch_norm(x.astype(jnp.float32), scale, bias)[0]
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("pixels", [7, 512, 1030, 4096])
def test_sums_half_upon_half(pixels):
    x = np.random.default_rng(0).normal(size=(pixels, 3)).astype(np.float32)
    np.testing.assert_allclose(sum_of_pixels(x), x.sum(axis=0), rtol=1e-4, atol=1e-3)
