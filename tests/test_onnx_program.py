"""ONNX programs: every family of networks, and every operation that can be written."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from orc_jax import models
from orc_jax.models.convolution import made_for
from orc_jax.trained import onnx_program

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def assert_equal_outputs(function, variables, images=IMAGES, tolerance=1e-5):
    """Write a function as ONNX, and compare what both compute; return the program."""
    model = onnx_program.program(function, variables, images.shape[1:])
    session = onnxruntime.InferenceSession(model)
    expected = np.asarray(jax.jit(function)(variables, images))
    for rows in (slice(1), slice(None)):
        (found,) = session.run(["logits"], {"images": images[rows]})
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found / scale, expected[rows] / scale, atol=tolerance)
    return model


# One network of every family and of every kind of block.
FAMILIES = (
    *("resnet8", "resnet8x4", "ResNet10", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1"),
    *("ShuffleV2", "okddip_vgg16", "densenet_40_12", "switokd_mobilenet", "switokd_wrn_16_1"),
    *("switokd_resnet20", "resnet10", "MobileNetV1", "mobilenet_v2", "wide_resnet20_8"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    size = max(models.NETWORKS[name].smallest, 32)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    network, rng = models.create(name, 5), np.random.default_rng(1)

    def value(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if kind == "kernel" else 0.1
        return (spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    def logits(variables, images):
        with made_for("any"):
            return network.apply(variables, images / np.float32(128) - 1, train=False)

    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images / 128, train=False))
    model = assert_equal_outputs(
        logits, jax.tree_util.tree_map_with_path(value, shapes), images, 1e-4
    )
    # A norm behind a convolution is part of it, unless something else needs what is between them.
    nodes = onnx.load_from_string(model).graph.node
    uses = collections.Counter(name for node in nodes for name in node.input)
    convolved = {name for node in nodes if node.op_type == "Conv" for name in node.output}
    for node in nodes:
        if node.op_type in ("Mul", "Sub"):
            assert not [name for name in node.input if name in convolved and uses[name] == 1]


def test_float16_computes_in_it():
    model = onnx_program.program(
        lambda w, x: jnp.log(jnp.maximum(x.astype(jnp.float32) @ w, 0.0).mean((1, 2)) + 0.1),
        np.ones((3, 2), np.float32) / 7,
        (8, 8, 3),
        np.float16,
    )
    graph = onnx.load_from_string(model).graph
    assert {weight.data_type for weight in graph.initializer} <= {7, 10}  # int64, float16
    session = onnxruntime.InferenceSession(model)
    (found,) = session.run(None, {"images": IMAGES})
    expected = np.log(IMAGES.sum(axis=-1).mean((1, 2)) / 7 + 0.1)
    np.testing.assert_allclose(found, np.stack([expected] * 2, axis=1), rtol=2e-3)
    assert found.dtype == np.float32


def images_of(x):
    return x.astype(jnp.float32) / 128 - 1


BLUR = jnp.ones((3, 3, 3, 2)) / 9

OPERATIONS = {
    "activations": lambda w, x: sum(
        f(x) for f in (nn.gelu, nn.silu, nn.tanh, nn.sigmoid, nn.relu6, nn.leaky_relu, nn.elu)
    ).mean((1, 2)),
    "limits": lambda w, x: jnp.log1p(jnp.clip(x, -0.5, 0.4)).mean((1, 2)),
    "a stack": lambda w, x: jnp.stack([x, 2 * x.transpose(0, 2, 1, 3)], 1).mean((2, 3, 4)),
    "exact gelu": lambda w, x: nn.gelu(x, approximate=False).mean((1, 2)),
    "arithmetic": lambda w, x: (
        jnp.abs(x) ** 3 - jnp.sqrt(jnp.abs(x)) + x**2 / (1 + jnp.exp(-x)) - lax.rsqrt(x**2 + 1)
    ).max((1, 2)),
    "from a constant": lambda w, x: (2.0 - (1 - x) / 3).min((1, 2)),
    "matrices": lambda w, x: jnp.einsum("bhwc,cd->bdh", x, w) @ jnp.ones((8, 3)) @ w[0],
    "attention": lambda w, x: (
        nn.softmax(jnp.einsum("bic,bjc->bij", x[:, 0], x[:, 1])).mean(1) @ jnp.ones((8, 2))
    ),
    "layer norm": lambda w, x: (
        (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-3)
    ).mean((1, 2)),
    "shapes": lambda w, x: jnp.concatenate(
        [
            x[:, ::2, 1::3].transpose(0, 3, 1, 2).reshape(len(x), -1),
            jnp.ones((len(x), 2)),
            jnp.squeeze(x[:, :1, :1], (1, 2)),
            *jnp.split(x[:, 3, :, 2], 2, axis=1),
        ],
        axis=1,
    ),
    "padding": lambda w, x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=0.5).mean(
        (1, 3)
    ),
    "broadcasts": lambda w, x: (
        jnp.broadcast_to(x.mean((1, 2))[:, None, None], x.shape) + jnp.arange(8.0)[:, None] * x
    ).mean((2, 3)),
    "pooling": lambda w, x: (
        nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        + nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    ).reshape(len(x), -1),
    "a kernel of three axes": lambda w, x: (
        jnp.tensordot(x.mean((1, 2)), jnp.arange(18.0).reshape(3, 3, 2), 1).reshape(len(x), -1)
    ),
    "all of an axis": lambda w, x: lax.slice_in_dim(x, 0, 8, axis=1).mean((1, 2)),
    "windows of one": lambda w, x: (
        nn.max_pool(x, (1, 1), (2, 2)) + nn.max_pool(x, (1, 3), (2, 2), ((0, 0), (1, 0)))
    ).mean((1, 2)),
    "a constant kernel": lambda w, x: lax.conv_general_dilated(
        x, BLUR, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).mean((1, 2)),
    "one channel, broadcast": lambda w, x: (
        lax.conv_general_dilated(
            x, jnp.ones((1, 1, 3, 1)), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        + jnp.arange(6.0)
    ).mean((1, 2)),
    "convolution and its neighbours": lambda w, x: (
        (lambda y: y * 2 + y)(  # used twice: not part of the kernel
            (lax.conv_general_dilated(x, jnp.ones((3, 3, 1, 6)) / 9, (2, 1), ((1, 0), (2, 2)),
             rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"),
             feature_group_count=3) - jnp.arange(6.0)) / 3
        ).mean((1, 2))
    ),
}  # fmt: skip


def test_attention_of_flax():
    attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)

    def logits(variables, images):
        x = images_of(images).mean(1)
        return attention.apply(variables, x, x).mean(1)

    shapes = jax.ShapeDtypeStruct((2, 8, 3), jnp.float32)
    variables = attention.init(jax.random.key(0), jnp.zeros(shapes.shape), jnp.ones(shapes.shape))
    assert_equal_outputs(logits, variables)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(name):
    weights = np.random.default_rng(2).standard_normal((3, 3)).astype(np.float32)
    assert_equal_outputs(lambda w, x: OPERATIONS[name](w, images_of(x)), weights)


def test_what_cannot_be_written_is_named():
    def loop(w, x):
        return lax.scan(lambda sum, row: (sum + row, None), w, x)[0]

    for function, name in ((lambda w, x: jnp.sort(x[:, 0, 0]), "sort"), (loop, "scan")):
        with pytest.raises(onnx_program.Unsupported, match=f"JAX's operation {name}$"):
            onnx_program.program(function, np.zeros((8, 8, 3), np.uint8), (8, 8, 3))
