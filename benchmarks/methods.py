"""What a method costs: `python -m benchmarks.methods`.

Times one step of every method with the same P networks, alternating in one run, against
`ind`, in which nobody teaches. Ratios are medians over rounds of time / ind within the round.

"passes" is the same ratio by what the networks compute, a forward pass being 1 and a backward
pass 2: what there is besides is losses, ranking, masks and moving data. ORC's pivot learns
from mixed images and then runs forward once more, and without a pivot the teacher's lesson
comes on top; KD's teacher only runs forward; branches run their trunk once for all; DCM's
heads are most of two networks more (no figure by passes for these two: see the README).
"""

import jax
import numpy as np
from absl import app, logging

from benchmarks.common import (
    FLAGS,
    alternate,
    compiled_step,
    peak_bytes,
    quartiles,
    repeated,
    settings,
    show,
)


def variants(size: int) -> dict:
    """name → (config, passes of this step over those of ind)."""
    ind = 3 * size
    return {
        "ind": (settings("ind", size), 1.0),
        "dml": (settings("dml", size), 1.0),
        **{
            f"kdcl {target}": (settings("kdcl", size, target=target), 1.0)
            for target in ("naive", "linear", "minlogit", "general")
        },
        "switokd": (settings("switokd", size), 1.0),
        "okddip_net": (settings("okddip", size, form="network"), 1.0),
        "orc": (settings("orc", size), (ind + 1) / ind),
        "orc_peers": (settings("orc", size, pivot=None), (ind + 4) / ind),
        "kd": (settings("kd", size), (ind - 2) / ind),
        "one": (settings("one", size), None),
        "cl_ilr": (settings("cl_ilr", size), None),
        "okddip": (settings("okddip", size), None),
        "dcm": (settings("dcm", size), None),
    }


def main(_):
    """Prints the table."""
    logging.set_verbosity(logging.WARNING)
    run, memory, passes = {}, {}, {}
    for name, (config, passes[name]) in variants(FLAGS.peers).items():
        if name == "kd":
            config.peers[0].init_from = "random weights do here"
        state, program, args, _ = compiled_step(config)
        run[name], memory[name] = repeated(state, program, args), peak_bytes(program)
    times = alternate(run)
    rows = []
    for name, seconds in times.items():
        ratio = seconds / times["ind"]
        counted = passes[name]
        rows.append(
            (
                name,
                f"{1000 * np.median(seconds):.1f}",
                f"{np.median(ratio):.3f}",
                quartiles(ratio),
                "" if counted is None else f"{counted:.3f}",
                "" if counted is None else f"{np.median(ratio) / counted:.3f}",
                f"{memory[name] / 2**20:.1f}",
            )
        )
    columns = ("method", "ms a step", "÷ ind", "quartiles", "passes", "÷ passes", "peak MiB")
    show(columns, rows, f"{len(jax.devices())} device(s)")


if __name__ == "__main__":
    app.run(main)
