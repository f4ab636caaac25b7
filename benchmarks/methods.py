"""`python -m benchmarks.methods` measures what a method costs.

One step of every method with the same P networks is compared with a step of `ind`, in which no
network teaches another. All of them take turns in one process; ratios are medians over rounds of
the time over that of `ind` in the same round.

The column "passes" is the ratio that the passes of the networks alone would give, with a forward
pass as 1 and a backward pass as 2. The rest of the time goes into losses, ranking, masks and moving
data. ORC's pivot learns from mixed images and then runs forward once more. The temporary teacher
takes its step before the other students: a forward and a backward pass, and a forward pass with the
new weights; with `temporary_teaches="before_private"` it needs none of these. Without a pivot, the
pass of the temporary teacher on mixed images comes on top. The teacher of KD only runs forward; so
do, while the student of a chain is trained, the one before it (TAKD) or all before it (DGKD).
Branches run their trunk once for all, and DCM's heads are nearly two more networks: for these two
the column is empty, see the README.
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
    """Return name → (config, ratio of the passes of a step to those of ind, or None)."""
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
        "orc": (settings("orc", size), (ind + 5) / ind),
        "orc before private": (
            settings("orc", size, temporary_teaches="before_private"),
            (ind + 1) / ind,
        ),
        "orc_peers": (settings("orc", size, pivot=None), (ind + 4) / ind),
        "kd": (settings("kd", size), (ind - 2) / ind),
        "takd": (settings("takd", size), 4 / ind),
        "dgkd": (settings("dgkd", size), (size + 2) / ind),
        "one": (settings("one", size), None),
        "cl_ilr": (settings("cl_ilr", size), None),
        "okddip": (settings("okddip", size), None),
        "dcm": (settings("dcm", size), None),
    }


def main(_):
    """Print the table."""
    logging.set_verbosity(logging.WARNING)
    run, memory, passes = {}, {}, {}
    for name, (config, passes[name]) in variants(FLAGS.peers).items():
        if name == "kd":
            config.peers[0].init_from = "none, random weights suffice"
        state, program, args, _ = compiled_step(config)
        run[name], memory[name] = repeated(state, program, args), peak_bytes(program)
    times = alternate(run)
    rows = []
    for name, seconds in times.items():
        ratio = seconds / times["ind"]
        expected = passes[name]
        rows.append(
            (
                name,
                f"{1000 * np.median(seconds):.1f}",
                f"{np.median(ratio):.3f}",
                quartiles(ratio),
                "" if expected is None else f"{expected:.3f}",
                "" if expected is None else f"{np.median(ratio) / expected:.3f}",
                f"{memory[name] / 2**20:.1f}",
            )
        )
    columns = ("method", "ms a step", "÷ ind", "quartiles", "passes", "÷ passes", "peak MiB")
    show(columns, rows, f"{len(jax.devices())} device(s)")


if __name__ == "__main__":
    app.run(main)
