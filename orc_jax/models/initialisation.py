"""How a network's program draws its first weights: one rule for each kind of layer.

The layers of `layers.py` and `norm.py` ask `current` for their rules when a network creates its
variables; `Network.initialisation` names them. Each family's file has those of its programs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import flax.linen as nn
import jax

# Of a kernel [height, width, inputs, outputs] or [inputs, outputs]; fan-in is height · width ·
# inputs, fan-out height · width · outputs.
he_by_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_by_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
uniform_by_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(±1/√fan-in)
small_normal = nn.initializers.normal(0.01)


def normal_of_one_by_fan_in(key, shape, dtype=float):
    """Draw from a normal distribution of standard deviation 1 / fan-in."""
    inputs = 1
    for size in shape[:-1]:
        inputs *= size
    return jax.random.normal(key, shape, dtype) / inputs


def uniform_bias(inputs: int) -> Callable:
    """Return the initialiser of a dense layer's bias as in PyTorch, U(±1/√inputs)."""

    def draw(key, shape, dtype=float):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / inputs**0.5

    return draw


def zero_bias(inputs: int) -> Callable:
    """Return an initialiser of zeros, whatever the inputs."""
    return nn.initializers.zeros


@dataclass(frozen=True)
class Initialisation:
    """Initialisers (key, shape, type) → weights, by kind of layer; biases of convolutions are 0.

    The defaults are those of the ResNets of all programs: He by fan-out, PyTorch's dense layers.

    Attributes:
      conv: of the kernel of a convolution.
      dense: of the kernel of a dense layer.
      dense_bias: number of inputs → initialiser of the bias of a dense layer.
      norm: of the scale of batch norm.
    """

    conv: Callable = he_by_fan_out
    dense: Callable = uniform_by_fan_in
    dense_bias: Callable = uniform_bias
    norm: Callable = nn.initializers.ones


DEFAULT = Initialisation()
PYTORCH = Initialisation(conv=uniform_by_fan_in)  # of programs that initialise nothing themselves
# SwitOKD's programs draw the kernels of several networks anew before they train them.
SWITOKD = Initialisation(conv=normal_of_one_by_fan_in, dense=normal_of_one_by_fan_in)

_CURRENT: ContextVar[Initialisation] = ContextVar("initialisation", default=DEFAULT)


@contextmanager
def initialised(rules: Initialisation) -> Iterator[None]:
    """Give the layers that are made within the context these rules."""
    token = _CURRENT.set(rules)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Initialisation:
    """Return the rules for a layer that is made now."""
    return _CURRENT.get()
