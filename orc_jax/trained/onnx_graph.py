"""The graph of an ONNX program while it is written, and what is simplified in it.

JAX's images are [B, H, W, channels] and ONNX's are [B, channels, H, W]. A value remembers the order
in which its axes lie in memory, so transposing it costs nothing until an operation needs an order.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Value(NamedTuple):
    """A value that depends on the images.

    Attributes:
      name: of the value in the program.
      shape: as in JAX.
      order: axis of `shape` that lies at each position in the program.
    """

    name: str
    shape: tuple
    order: tuple[int, ...]


class Node(NamedTuple):
    """An operation of the program; inputs and outputs are names."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict


class Graph:
    """The operations and constants of a program.

    Attributes:
      dtype: type in which the program computes.
      nodes: the operations, in order.
      constants: name → constant, still in the type that JAX gave it.
    """

    def __init__(self, dtype: np.dtype):
        """Begin an empty graph."""
        self.dtype = dtype
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, op: str, inputs: Sequence[str], outputs=None, **attributes) -> list[str]:
        """Add an operation, and return the names of its outputs: by default, a new one."""
        outputs = outputs or [f"{op}_{len(self.nodes)}"]
        self.nodes.append(Node(op, list(inputs), outputs, attributes))
        return outputs

    def constant(self, value) -> str:
        """Add a constant, and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def typed(self, value: np.ndarray) -> np.ndarray:
        """Return a constant as it is written: of floating point, it has the program's type."""
        value = value.astype(self.dtype) if np.issubdtype(value.dtype, np.floating) else value
        return np.ascontiguousarray(value).reshape(value.shape)

    def integers(self, *values) -> str:
        """Add a list of integers, such as axes or lengths."""
        return self.constant(np.array(values, np.int64))

    def ordered(self, value, order: Sequence[int] | None = None) -> Any:
        """Bring the axes into an order; without one, into JAX's."""
        order = tuple(range(len(value.shape)) if order is None else order)
        if not isinstance(value, Value):
            value = np.asarray(value)
            name = self.constant(value.transpose(order) if value.ndim == len(order) else value)
            return Value(name, value.shape, order)
        if value.order == order:
            return value
        perm = [value.order.index(axis) for axis in order]
        (name,) = self.node("Transpose", [value.name], perm=perm)
        return Value(name, value.shape, order)

    def cast(self, value: Value, dtype) -> Value:
        """Convert a value to another type."""
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return value._replace(name=self.node("Cast", [value.name], to=kind)[0])

    def elementwise(self, op: str, *inputs) -> Value:
        """Add an operation on values and constants that are broadcast to one shape."""
        first = next(value for value in inputs if isinstance(value, Value))
        numbers = [v for v in inputs if isinstance(v, np.ndarray) and not v.shape]
        if op == "Max" and 0 in numbers:
            return first._replace(name=self.node("Relu", [first.name])[0])
        names = [self.ordered(value, first.order).name for value in inputs]
        shape = np.broadcast_shapes(*(value.shape for value in inputs))
        (name,) = self.node(op, names)
        return Value(name, shape, first.order)

    def reduce(self, op: str, value: Value, axes) -> Value:
        """Add an operation that removes some axes of JAX's."""
        at = self.integers(*(value.order.index(axis) for axis in axes))
        (name,) = self.node(op, [value.name, at], keepdims=0)
        return self.without(value, axes, name)

    def without(self, value: Value, axes, name: str) -> Value:
        """Return what is called `name` and has all but some axes of a value."""
        left = [axis for axis in range(len(value.shape)) if axis not in axes]
        order = tuple(left.index(axis) for axis in value.order if axis in left)
        return Value(name, tuple(value.shape[axis] for axis in left), order)


def with_norms_folded(
    nodes: list[Node], constants: dict[str, np.ndarray]
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Move what follows a convolution, channel by channel, into its kernel and bias."""
    uses = Counter(name for node in nodes for name in node.inputs)
    constants = dict(constants)
    convolutions: dict[str, int] = {}  # output → place in `kept`
    kept: list[Node] = []
    for node in nodes:
        place = next((convolutions[name] for name in node.inputs if name in convolutions), None)
        channels = 0 if place is None else len(constants[kept[place].inputs[1]])
        factor = _per_channel(node, constants, channels)
        if place is None or factor is None or uses[kept[place].outputs[0]] > 1:
            if node.op == "Conv":
                convolutions[node.outputs[0]] = len(kept)
            kept.append(node)
            continue
        images, kernel, *bias = kept[place].inputs
        bias = bias or [f"{kernel}_bias"]
        shift = constants.get(bias[0], np.zeros(len(constants[kernel])))
        if node.op in ("Add", "Sub"):
            constants[bias[0]] = shift + (factor if node.op == "Add" else -factor)
        else:
            factor = factor if node.op == "Mul" else 1 / factor
            by_output = (-1, *[1] * (constants[kernel].ndim - 1))
            constants[kernel] = constants[kernel] * factor.reshape(by_output)
            constants[bias[0]] = shift * factor
        # The convolution takes the place of both; `kept` is still in order.
        kept[place] = kept[place]._replace(inputs=[images, kernel, *bias], outputs=node.outputs)
        convolutions[node.outputs[0]] = place
    return kept, constants


def _per_channel(node, constants, channels) -> np.ndarray | None:
    """Return the constant, one number or one per channel, that a node applies to another value."""
    if node.op not in ("Add", "Mul", "Sub", "Div"):
        return None
    found = [i for i, name in enumerate(node.inputs) if name in constants]
    if len(found) != 1 or (node.op in ("Sub", "Div") and found != [1]):
        return None
    value = constants[node.inputs[found[0]]]
    # Axis 1 is that of the channels.
    fits = value.ndim == 0 or (value.ndim == 4 and value.size == value.shape[1])
    return value.astype(np.float64).reshape(-1) if fits and value.size in (1, channels) else None
