"""`python -m benchmarks.networks --size=32` measures what a stack of each family costs.

For every network, three programs take turns in one process: training one network alone, without a
stack and a method; the same with XLA's own convolutions; and training a stack of P networks that do
not teach each other.
"""

import numpy as np
from absl import app, flags, logging

from benchmarks.common import (
    FLAGS,
    alternate,
    compiled_step,
    plain_convolutions,
    quartiles,
    repeated,
    settings,
    show,
    single_step,
)

NETWORKS = [
    "resnet20",
    "wide_resnet20_8",
    "resnet10",
    "wrn_16_2",
    "vgg8",
    "densenet_40_12",
    "mobilenet",
    "MobileNetV2",
    "mobilenet_v2",
    "ShuffleV1",
    "ShuffleV2",
]
flags.DEFINE_bool("xla", True, "Also time XLA's own convolutions (minutes per network).")
flags.DEFINE_list("networks", NETWORKS, "Networks to time.")


def row(name: str) -> tuple[str, ...]:
    """Return the row of a network in the table."""
    FLAGS.network = name
    stack, *rest = compiled_step(settings("ind", FLAGS.peers))
    run = {"single": repeated(*single_step()), "stack": repeated(stack, *rest[:2])}
    if FLAGS.xla:
        with plain_convolutions():
            run["plain"] = repeated(*single_step())
    seconds = alternate(run)
    ratio = seconds["stack"] / (FLAGS.peers * seconds["single"])
    return (
        name,
        f"{1000 * np.median(seconds['single']):.1f}",
        f"{1000 * np.median(seconds['stack']) / FLAGS.peers:.1f}",
        f"{np.median(ratio):.3f}",
        quartiles(ratio),
        f"{np.median(seconds['plain'] / seconds['single']):.1f}" if FLAGS.xla else "",
    )


def main(_):
    """Print the table."""
    logging.set_verbosity(logging.WARNING)
    columns = ("network", "ms alone", "ms a peer", "ratio", "quartiles", "XLA's own ÷ ours")
    rows = []
    for name in FLAGS.networks:
        rows.append(row(name))
        print(*rows[-1], flush=True)
    show(columns, rows, what="one network")


if __name__ == "__main__":
    app.run(main)
