"""Cost of a network: parameters, multiply-adds, and latency for one image."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import models
from orc_jax.models.layers import Dense

# Image size → number of classes, as in CIFAR-100, Tiny-ImageNet and ImageNet.
CLASSES = {32: 100, 64: 200, 224: 1000}


def cost(name: str) -> tuple[int, int]:
    """Count a network's parameters, and its multiply-adds for one image of its usual size.

    Only the multiply-adds of convolutions and dense layers count. The network is traced, not
    run.

    Args:
      name: name of the network, as `models.canonical` returns it.

    Returns:
      (parameters, multiply-adds).
    """
    network, image = _usual_case(name)
    multiply_adds = 0

    def count(call, args, kwargs, context):
        nonlocal multiply_adds
        out, layer = call(*args, **kwargs), context.module
        if isinstance(layer, (nn.Conv, nn.Dense, Dense)) and context.method_name == "__call__":
            # The whole kernel is applied once at every position of the output.
            positions = out.size // out.shape[-1]
            multiply_adds += positions * layer.get_variable("params", "kernel").size
        return out

    with nn.intercept_methods(count):
        variables = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), multiply_adds


def latency(name: str, repetitions: int = 30) -> float:
    """Measure the median time for one image of the usual size, in eval mode, on this machine.

    Args:
      name: name of the network, as `models.canonical` returns it.
      repetitions: number of measurements, after one that warms up.

    Returns:
      Milliseconds.
    """
    network, image = _usual_case(name)
    variables = jax.jit(lambda: network.init(jax.random.key(0), image, train=False))()
    run = jax.jit(lambda variables, image: network.apply(variables, image, train=False))
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(variables, image))
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[1:]))


def _usual_case(name):
    """Return the network for its usual number of classes, and one image [1, H, W, 3]."""
    size = models.entry(name).size
    return models.create(name, CLASSES[size]), jnp.zeros((1, size, size, 3))
