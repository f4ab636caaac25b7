"""`python -m benchmarks.programs` measures the memory and the communication of compiled steps.

No step is run. The table "memory" has the peak by the program's own analysis, for several group
sizes, for every method, and with the settings that save memory. The table "wire" has the bytes that
each device sends in a step, counted from the collective operations of the program for a mesh of
simulated devices (`--devices`): a ring all-reduce of n bytes over m devices sends 2 n (m−1)/m,
and an all-gather (m−1)/m of its result. Simulated devices share one processor, so they say nothing
about speed.
"""

import math
import re

import jax
from absl import app, flags, logging

from benchmarks.common import FLAGS, peak_bytes, random_images, settings, show
from orc_jax.loop import training_batches
from orc_jax.methods import NAMES
from orc_jax.prepare import prepare
from orc_jax.state import abstract_state
from orc_jax.step import compile_steps

flags.DEFINE_integer("devices", 4, "Simulated devices of the largest mesh.")
flags.DEFINE_list("tables", ["memory", "wire"], "Tables to print.")
flags.DEFINE_list("sizes", ["1", "2", "4", "8"], "Group sizes of the memory table.")
flags.DEFINE_bool("methods", True, "Include every method in the memory table.")

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1, "f64": 8}
COLLECTIVE = re.compile(r"= (.*?) (all-[\w-]+?|reduce-scatter|collective-\w+?)(-start|-done)?\(")


def program(config):
    """Return the compiled step of a config; no state is allocated."""
    setup = prepare(config, random_images())
    train_step, *_ = compile_steps(setup.config, setup.group, setup.method)
    state = abstract_state(*setup.state_args())
    return train_step.lower(state, *next(training_batches(setup, 0))).compile()


def wire_bytes(text: str) -> dict[str, float]:
    """Count the bytes that a device sends for each kind of collective operation.

    Args:
      text: the compiled program as HLO text.

    Returns:
      Kind ("all-reduce", "all-gather") → bytes.

    Raises:
      ValueError: the program has a collective operation of another kind.
    """
    sent: dict[str, float] = {}
    for line in text.splitlines():
        if match := COLLECTIVE.search(line):
            shapes, kind, asynchronous = match.groups()
            if asynchronous or kind not in ("all-reduce", "all-gather"):
                raise ValueError(f"a collective operation that is not counted: {line.strip()}")
            size = sum(
                BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            )
            share = 1 - 1 / _group_size(line)
            if kind == "all-reduce":
                share *= 2
            sent[kind] = sent.get(kind, 0) + share * size
    return sent


def _group_size(line):
    """Return the devices per group, of {{0,1},{2,3}} or [2,2]<=[4] (groups × devices)."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    return int(re.search(r"replica_groups=\[\d+,(\d+)\]", line)[1])


def mebibytes(size) -> str:
    """Write a number of bytes in MiB, with three digits or all before the point."""
    return f"{size / 2**20:.3g}" if size < 10 * 2**20 else f"{size / 2**20:,.0f}"


def memory() -> None:
    """Print the peak memory by group size, by method, and with settings that save memory."""
    rows = []

    def row(name, config):
        weights = sum(4 * count for count in prepare(config, random_images()).num_params)
        rows.append((name, mebibytes(peak_bytes(program(config))), mebibytes(weights)))
        print(*rows[-1], flush=True)

    for size in map(int, FLAGS.sizes):
        row(f"ind, P = {size}", settings("ind", size))
    for method in NAMES[1:] if FLAGS.methods else ():
        config = settings(method, FLAGS.peers)
        if method == "kd":
            config.peers[0].init_from = "none, random weights suffice"
        row(f"{method}, P = {FLAGS.peers}", config)
    for changes in ({"remat": True}, {"micro_batches": 4}, {"remat": True, "micro_batches": 4}):
        config = settings("ind", FLAGS.peers)
        config.update(changes)
        row(f"ind, P = {FLAGS.peers}, {', '.join(changes)}", config)
    show(("step", "peak MiB", "of that weights"), rows)


def wire() -> None:
    """Print the bytes that a device sends by mesh."""
    rows = []
    sizes = [size for size in (1, 2, 4, 8) if size <= FLAGS.devices]
    meshes = [(size, 1) for size in sizes] + [(1, size) for size in sizes[1:]]
    for mesh in meshes:
        config = settings("dml", FLAGS.peers)
        config.mesh.data, config.mesh.peer = mesh
        sent = wire_bytes(program(config).as_text())
        kinds = ", ".join(f"{kind} {mebibytes(size)}" for kind, size in sorted(sent.items()))
        rows.append((f"{mesh[0]} × {mesh[1]}", mebibytes(sum(sent.values())), kinds))
        print(*rows[-1], flush=True)
    show(("data × peer", "MiB a device sends", "of these"), rows, what=f"{FLAGS.network} by dml")


def main(_):
    """Print the tables."""
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    for name in FLAGS.tables:
        {"memory": memory, "wire": wire}[name]()


if __name__ == "__main__":
    app.run(main)
