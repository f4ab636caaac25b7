"""ONNX programs of classifiers, written from what JAX traces.

The operations of a network on images come one by one from its jaxpr. What depends on the weights
alone is computed here, and a norm behind a convolution becomes part of its kernel. An operation
that is missing here is named in the error.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from orc_jax.trained.onnx_graph import Graph, Value, with_norms_folded

OPSET, IR_VERSION = 18, 10
# The batch size of what is traced. No axis of a network has a multiple of this prime, so such axes
# of the program have the length that the caller's batch gives them.
BATCH = 7919

# Functions that are called, or that a custom gradient or batching rule belongs to.
CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)
ELEMENTWISE = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"},
    **{"exp": "Exp", "log": "Log", "neg": "Neg", "abs": "Abs", "sqrt": "Sqrt", "tanh": "Tanh"},
    **{"logistic": "Sigmoid", "erf": "Erf", "pow": "Pow", "floor": "Floor", "sign": "Sign"},
    **{"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"},
    **{"and": "And", "or": "Or", "not": "Not"},
}
REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


class Unsupported(Exception):
    """An operation that this module cannot write."""


def program(
    function: Callable, variables, image_shape: tuple[int, ...], dtype: Any = np.float32
) -> bytes:
    """Write a classifier as an ONNX program for any batch size, from "images" to "logits".

    Args:
      function: (variables, uint8 images [B, H, W, channels]) → float32 logits [B, C].
      variables: the weights, which become part of the program.
      image_shape: (H, W, channels).
      dtype: type in which the program computes: float32 or float16. Its logits are float32.

    Raises:
      Unsupported: the function has an operation that this module cannot write.
      ImportError: there is no package onnx.
    """
    import onnx
    from onnx import helper, numpy_helper

    writer = _Writer(np.dtype(dtype))
    images = jax.ShapeDtypeStruct((BATCH, *image_shape), np.uint8)
    closed = jax.make_jaxpr(function)(variables, images)
    order = tuple(range(len(images.shape)))
    known = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    (out,) = writer.run(closed, [*known, Value("images", images.shape, order)])
    logits = writer.cast(writer.ordered(out), np.float32)
    writer.node("Identity", [logits.name], outputs=["logits"])
    nodes, constants = with_norms_folded(writer.nodes, writer.constants)
    used = {name for node in nodes for name in node.inputs}
    constants = {name: writer.typed(value) for name, value in constants.items() if name in used}

    def described(name, dtype, shape):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        shape = ["batch", *shape[1:]]
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [helper.make_node(n.op, n.inputs, n.outputs, **n.attributes) for n in nodes],
        "classifier",
        [described("images", images.dtype, images.shape)],
        [described("logits", np.float32, out.shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="orc_jax",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _of_batch(side) -> bool:
    return side > 0 and side % BATCH == 0


class _Writer(Graph):
    """Writes the operations of a jaxpr one after the other."""

    def run(self, closed, arguments: Sequence[Any]) -> list[Any]:
        """Write a jaxpr; arguments and results are arrays, where they are known, or `Value`s."""
        jaxpr = getattr(closed, "jaxpr", closed)
        constants = map(np.asarray, getattr(closed, "consts", ()))
        values = dict(zip(jaxpr.constvars, constants, strict=True))
        values |= zip(jaxpr.invars, arguments, strict=True)

        def read(atom):
            return np.asarray(atom.val) if hasattr(atom, "val") else values[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation, inputs):
        name, params = equation.primitive.name, equation.params
        if name in CALLS:
            bodies = (p for p in params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr"))
            return self.run(next(bodies), inputs)
        if not any(isinstance(value, Value) for value in inputs):
            return self._known(equation, inputs)
        if name in ELEMENTWISE:
            return [self.elementwise(ELEMENTWISE[name], *inputs)]
        if name in REDUCTIONS:
            return [self.reduce(REDUCTIONS[name], *inputs, params["axes"])]
        write = getattr(self, f"write_{name}", None)
        if write is None:
            raise Unsupported(f"it has no way to write JAX's operation {name}")
        results = write(*inputs, **params)
        return results if isinstance(results, list) else [results]

    def _known(self, equation, inputs):
        params = dict(equation.params)
        if "shape" in params:  # an axis as long as the batch is broadcast where it is used
            params["shape"] = tuple(1 if _of_batch(side) else side for side in params["shape"])
        try:
            results = equation.primitive.bind(*inputs, **params)
        except (TypeError, ValueError) as error:  # where the shape of the batch is another
            name = equation.primitive.name
            raise Unsupported(f"it cannot write {name} of something of the batch's size") from error
        results = results if equation.primitive.multiple_results else [results]
        return [np.asarray(result) for result in results]

    def write_convert_element_type(self, value, new_dtype, **_):
        is_float = np.issubdtype(new_dtype, np.floating)
        return self.cast(value, self.dtype if is_float else new_dtype)

    def write_integer_pow(self, value, y, **_):
        return self.elementwise("Pow", value, np.float32(y))

    def write_square(self, value, **_):
        return self.elementwise("Mul", value, value)

    def write_rsqrt(self, value, **_):
        return self.elementwise("Reciprocal", self.elementwise("Sqrt", value))

    def write_expm1(self, value, **_):
        return self.elementwise("Sub", self.elementwise("Exp", value), np.float32(1))

    def write_log1p(self, value, **_):
        return self.elementwise("Log", self.elementwise("Add", value, np.float32(1)))

    def write_erfc(self, value, **_):
        return self.elementwise("Sub", np.float32(1), self.elementwise("Erf", value))

    def write_is_finite(self, value, **_):
        # ∞ − ∞ and NaN − NaN are NaN, which equals nothing.
        return self.elementwise("Equal", self.elementwise("Sub", value, value), np.float32(0))

    def write_ne(self, one, other, **_):
        return self.elementwise("Not", self.elementwise("Equal", one, other))

    def write_clamp(self, low, value, high, **_):
        return self.elementwise("Min", self.elementwise("Max", value, low), high)

    def write_select_n(self, which, on_false, on_true, **_):
        return self.elementwise("Where", which, on_true, on_false)

    def write_copy(self, value, **_):
        return value

    def write_stop_gradient(self, value, **_):
        return value

    def write_transpose(self, value, permutation):
        order = tuple(permutation.index(axis) for axis in value.order)
        return Value(value.name, tuple(value.shape[axis] for axis in permutation), order)

    def write_squeeze(self, value, dimensions):
        at = self.integers(*(value.order.index(axis) for axis in dimensions))
        return self.without(value, dimensions, *self.node("Squeeze", [value.name, at]))

    def write_reshape(self, value, new_sizes, **_):
        return self._reshaped(value, new_sizes, new_sizes)

    def _reshaped(self, value, sizes, shape):
        sizes = self.integers(*(-1 if _of_batch(size) else size for size in sizes))
        (name,) = self.node("Reshape", [self.ordered(value).name, sizes])
        return Value(name, tuple(shape), tuple(range(len(shape))))

    def write_broadcast_in_dim(self, value, *_, shape, broadcast_dimensions, **__):
        sizes = [1] * len(shape)
        for axis, at in enumerate(broadcast_dimensions):
            sizes[at] = value.shape[axis]
        value = self._reshaped(value, sizes, sizes)
        if tuple(sizes) == tuple(shape):
            return value
        wanted = [new if new != old else 1 for new, old in zip(shape, sizes, strict=True)]
        wanted = [1 if _of_batch(size) else size for size in wanted]  # as in `_known`
        (name,) = self.node("Expand", [value.name, self.integers(*wanted)])
        return Value(name, tuple(shape), value.order)

    def write_concatenate(self, *values, dimension):
        first = next(value for value in values if isinstance(value, Value))
        names = [self._as_long(self.ordered(value, first.order), first).name for value in values]
        shape = list(first.shape)
        shape[dimension] = sum(value.shape[dimension] for value in values)
        axis = first.order.index(dimension)
        return Value(*self.node("Concat", names, axis=axis), tuple(shape), first.order)

    def write_stack(self, *values, axis):
        shape = list(values[0].shape)
        shape.insert(axis, 1)
        parts = [self._reshaped(self.ordered(value), shape, shape) for value in values]
        return self.write_concatenate(*parts, dimension=axis)

    def _as_long(self, value, other) -> Value:
        """Repeat a value for each image of the batch, if it is the same for all of them."""
        axes = [axis for axis, side in enumerate(other.shape) if _of_batch(side)]
        if value.shape[axes[0]] != 1:
            return value
        at = other.order.index(axes[0])
        (batch,) = self.node("Shape", [other.name], start=at, end=at + 1)
        before, after = ([1] * n for n in (at, len(other.shape) - at - 1))
        sizes = self.node("Concat", [self.integers(*before), batch, self.integers(*after)], axis=0)
        return value._replace(name=self.node("Expand", [value.name, *sizes])[0])

    def write_split(self, value, sizes, axis):
        sizes = [int(size) for size in sizes]
        outputs = [f"Split_{len(self.nodes)}_{i}" for i in range(len(sizes))]
        at = value.order.index(axis)
        self.node("Split", [value.name, self.integers(*sizes)], outputs, axis=at)

        def shape(size):
            return (*value.shape[:axis], size, *value.shape[axis + 1 :])

        return [
            Value(name, shape(size), value.order) for name, size in zip(outputs, sizes, strict=True)
        ]

    def write_slice(self, value, start_indices, limit_indices, strides):
        strides = strides or (1,) * len(start_indices)
        parts = zip(start_indices, limit_indices, strides, value.shape, strict=True)
        cuts = {
            value.order.index(axis): (start, limit, stride)
            for axis, (start, limit, stride, side) in enumerate(parts)
            if (start, limit, stride) != (0, side, 1)
        }
        if not cuts:
            return value
        starts, limits, steps = zip(*cuts.values(), strict=True)
        inputs = [self.integers(*numbers) for numbers in (starts, limits, tuple(cuts), steps)]
        lengths = zip(start_indices, limit_indices, strides, strict=True)
        shape = tuple(-(-(limit - start) // stride) for start, limit, stride in lengths)
        return Value(*self.node("Slice", [value.name, *inputs]), shape, value.order)

    def write_pad(self, value, padding, padding_config):
        if any(low < 0 or high < 0 or inner for low, high, inner in padding_config):
            raise Unsupported("it cannot write a padding that is negative or between pixels")
        sides = [padding_config[axis] for axis in value.order]
        pads = self.integers(*(low for low, _, _ in sides), *(high for _, high, _ in sides))
        (name,) = self.node("Pad", [value.name, pads, self.constant(padding)])
        sides = zip(value.shape, padding_config, strict=True)
        shape = tuple(side + low + high for side, (low, high, _) in sides)
        return Value(name, shape, value.order)

    def write_dot_general(self, lhs, rhs, dimension_numbers, **_):
        (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = dimension_numbers
        letters = iter(string.ascii_lowercase)
        left, right = ([""] * len(value.shape) for value in (lhs, rhs))
        for mine, other in zip((*lhs_batch, *lhs_axes), (*rhs_batch, *rhs_axes), strict=True):
            left[mine] = right[other] = next(letters)
        free = [
            [axis for axis in range(len(value.shape)) if axis not in (*batch, *axes)]
            for value, batch, axes in ((lhs, lhs_batch, lhs_axes), (rhs, rhs_batch, rhs_axes))
        ]
        for names, axes in zip((left, right), free, strict=True):
            for axis in axes:
                names[axis] = next(letters)
        batch = [(lhs, axis, left) for axis in lhs_batch]
        out = batch + [(lhs, a, left) for a in free[0]] + [(rhs, a, right) for a in free[1]]
        shape = tuple(value.shape[axis] for value, axis, _ in out)
        names = [self.ordered(value).name for value in (lhs, rhs)]
        order = tuple(range(len(shape)))
        of_matrix = len(rhs.shape) == 2 and rhs_axes == (0,)
        if not batch and of_matrix and lhs_axes == (len(lhs.shape) - 1,):
            return Value(*self.node("MatMul", names), shape, order)
        result = "".join(own[axis] for _, axis, own in out)
        equation = f"{''.join(left)},{''.join(right)}->{result}"
        return Value(*self.node("Einsum", names, equation=equation), shape, order)

    def write_conv_general_dilated(self, images, kernel, window_strides, padding, **params):
        if not isinstance(kernel, np.ndarray) or {*params["lhs_dilation"]} != {1}:
            raise Unsupported("it cannot write this kind of convolution")
        spec, dilation = params["dimension_numbers"], params["rhs_dilation"]
        images = self.ordered(images, spec.lhs_spec)
        kernel = kernel.transpose(spec.rhs_spec)
        (name,) = self.node(
            "Conv",
            [images.name, self.constant(kernel)],
            group=params["feature_group_count"],
            strides=list(window_strides),
            dilations=list(dilation),
            pads=[low for low, _ in padding] + [high for _, high in padding],
        )
        sides = [images.shape[axis] for axis in spec.lhs_spec[2:]]
        windows = zip(kernel.shape[2:], dilation, strict=True)
        sizes = [(size - 1) * apart + 1 for size, apart in windows]
        shape = [0] * len(images.shape)
        lengths = [images.shape[spec.lhs_spec[0]], kernel.shape[0]]
        lengths += _windows(sides, sizes, window_strides, padding)
        for axis, length in zip(spec.out_spec, lengths, strict=True):
            shape[axis] = length
        return Value(name, tuple(shape), tuple(spec.out_spec))

    def write_reduce_window_max(self, value, **params):
        return self._pool("MaxPool", value, **params)

    def write_reduce_window_sum(self, value, **params):
        mean = self._pool("AveragePool", value, count_include_pad=1, **params)
        return self.elementwise("Mul", mean, np.float32(np.prod(params["window_dimensions"])))

    def _pool(
        self, op, value, window_dimensions, window_strides, padding, base_dilation,
        window_dilation, **attributes,
    ):  # fmt: skip
        windows = zip(window_dimensions, window_strides, padding, strict=True)
        alone = [axis for axis, window in enumerate(windows) if window == (1, 1, (0, 0))]
        batch = [axis for axis in (0, len(value.shape) - 1) if axis in alone]  # and channels
        space = [axis for axis in range(len(value.shape)) if axis not in batch]
        if len(batch) != 2 or len(space) != 2 or {*base_dilation, *window_dilation} != {1}:
            raise Unsupported("it cannot write this kind of pooling")
        value = self.ordered(value, (*batch, *space))
        (name,) = self.node(
            op,
            [value.name],
            kernel_shape=[window_dimensions[axis] for axis in space],
            strides=[window_strides[axis] for axis in space],
            pads=[padding[axis][0] for axis in space] + [padding[axis][1] for axis in space],
            **attributes,
        )
        shape = list(value.shape)
        parts = [[given[a] for a in space] for given in (shape, window_dimensions, window_strides)]
        for axis, length in zip(space, _windows(*parts, [padding[a] for a in space]), strict=True):
            shape[axis] = length
        return Value(name, tuple(shape), value.order)


def _windows(sides, sizes, strides, padding) -> list[int]:
    """Return how many positions of a window there are along each axis."""
    parts = zip(sides, sizes, strides, padding, strict=True)
    return [(side + sum(pad) - size) // stride + 1 for side, size, stride, pad in parts]
