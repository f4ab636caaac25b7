"""What a network costs: parameters, multiply-adds, and the time for one image."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import models

CLASSES = {32: 100, 64: 200, 224: 1000}  # of CIFAR-100, Tiny-ImageNet and ImageNet, by size


def cost(name: str) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image of the network's usual size.

    Multiply-adds are those of convolutions and dense layers. Nothing is computed.
    """
    network, image = _usual(name)
    multiply_adds = 0

    def count(call, args, kwargs, context):
        nonlocal multiply_adds
        out, layer = call(*args, **kwargs), context.module
        if isinstance(layer, (nn.Conv, nn.Dense)) and context.method_name == "__call__":
            # A kernel is used once for every place of the output.
            places = out.size // out.shape[-1]
            multiply_adds += places * layer.get_variable("params", "kernel").size
        return out

    with nn.intercept_methods(count):
        variables = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), multiply_adds


def latency(name: str, repetitions: int = 30) -> float:
    """Median milliseconds for one image of the usual size, in eval mode, on this machine."""
    network, image = _usual(name)
    variables = jax.jit(lambda: network.init(jax.random.key(0), image, train=False))()
    run = jax.jit(lambda variables, image: network.apply(variables, image, train=False))
    seconds = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        jax.block_until_ready(run(variables, image))
        seconds.append(time.perf_counter() - began)
    return 1000 * float(np.median(seconds[1:]))


def _usual(name):
    """The network with the classes, and an image of the size, that are usual for it."""
    size = models.entry(name).size
    return models.create(name, CLASSES[size]), jnp.zeros((1, size, size, 3))
