"""`python -m orc_jax.models [--latency]`: every network with what it costs."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from orc_jax import commands, models

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
    size = models.NETWORKS[name].size
    return models.create(name, CLASSES[size]), jnp.zeros((1, size, size, 3))


def main() -> None:
    """The command line."""
    measure = flags.DEFINE_bool("latency", False, "Also measure the time for one image.")

    def command():
        table = Table(title="Networks, by name")
        columns = ["network", "image", "classes", "parameters", "multiply-adds"]
        for i, column in enumerate(columns + ["ms an image"] * measure.value):
            table.add_column(column, justify="right" if i else "left")
        for name, entry in models.NETWORKS.items():
            parameters, multiply_adds = cost(name)
            row = [name, f"{entry.size}×{entry.size}", f"{CLASSES[entry.size]}"]
            row += [f"{parameters / 1e6:.2f} M", f"{multiply_adds / 1e6:.1f} M"]
            if measure.value:
                row.append(f"{latency(name):.1f}")
            table.add_row(*row)
        Console().print(table)
        if measure.value:
            print(f"ms: one image at a time, median of 30, {jax.devices()[0].device_kind}")

    commands.run(command)


if __name__ == "__main__":
    main()
