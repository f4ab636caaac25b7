"""What a compiled step needs: `python -m benchmarks.programs`. Nothing is run.

Memory: the peak by the program's own analysis, for several group sizes, for every method, and
with what is there to need less. Wire: the bytes that each device sends in a step, counted from
the collective operations of the program for a mesh of simulated devices (`--devices`): a ring
all-reduce of n bytes over m devices sends 2 n (m−1)/m, an all-gather (m−1)/m of what it gives.
Simulated devices share one processor: they show bytes and correctness, not speed.
"""

import math
import re

import jax
from absl import app, flags, logging

from benchmarks.common import FLAGS, peak_bytes, random_images, settings, show
from orc_jax.methods import NAMES
from orc_jax.prepare import prepare
from orc_jax.state import abstract_state
from orc_jax.step import compile_steps
from orc_jax.training import training_batches

flags.DEFINE_integer("devices", 4, "Simulated devices of the largest mesh.")
flags.DEFINE_list("tables", ["memory", "wire"], "Which to print.")
flags.DEFINE_list("sizes", ["1", "2", "4", "8"], "Group sizes of the memory table.")
flags.DEFINE_bool("methods", True, "Whether the memory table has every method.")

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1, "f64": 8}
COLLECTIVE = re.compile(r"= (.*?) (all-[\w-]+?|reduce-scatter|collective-\w+?)(-start|-done)?\(")


def program(config):
    """The compiled step of a config; its state is not made."""
    setup = prepare(config, random_images())
    train_step, *_ = compile_steps(setup.config, setup.group, setup.method)
    state = abstract_state(*setup.state_args())
    return train_step.lower(state, *next(training_batches(setup, 0))).compile()


def wire_bytes(text: str) -> dict[str, float]:
    """Bytes that a device sends for each kind of collective operation of a program's text."""
    sent: dict = {}
    for line in text.splitlines():
        if found := COLLECTIVE.search(line):
            shapes, kind, asynchronous = found.groups()
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
    """Devices of one group: of {{0,1},{2,3}} or of [2,2]<=[4], groups × devices."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    return int(re.search(r"replica_groups=\[\d+,(\d+)\]", line)[1])


def mebibytes(size) -> str:
    """With the digits that matter."""
    return f"{size / 2**20:.3g}" if size < 10 * 2**20 else f"{size / 2**20:,.0f}"


def memory() -> None:
    """Prints peak memory by group size, by method, and with what needs less."""
    rows = []

    def row(name, config):
        state = prepare(config, random_images())
        weights = sum(4 * n for n in state.num_params)
        rows.append((name, mebibytes(peak_bytes(program(config))), mebibytes(weights)))
        print(*rows[-1], flush=True)

    for size in map(int, FLAGS.sizes):
        row(f"ind, P = {size}", settings("ind", size))
    for method in NAMES[1:] if FLAGS.methods else ():
        config = settings(method, FLAGS.peers)
        if method == "kd":
            config.peers[0].init_from = "random weights do here"
        row(f"{method}, P = {FLAGS.peers}", config)
    for changes in ({"remat": True}, {"micro_batches": 4}, {"remat": True, "micro_batches": 4}):
        config = settings("ind", FLAGS.peers)
        config.update(changes)
        row(f"ind, P = {FLAGS.peers}, {', '.join(changes)}", config)
    show(("step", "peak MiB", "of that weights"), rows)


def wire() -> None:
    """Prints the bytes over the wire by mesh."""
    rows = []
    devices = [n for n in (1, 2, 4, 8) if n <= FLAGS.devices]
    meshes = [(n, 1) for n in devices] + [(1, n) for n in devices[1:]]
    for mesh in meshes:
        config = settings("dml", FLAGS.peers)
        config.mesh.data, config.mesh.peer = mesh
        sent = wire_bytes(program(config).as_text())
        kinds = ", ".join(f"{kind} {mebibytes(size)}" for kind, size in sorted(sent.items()))
        rows.append((f"{mesh[0]} × {mesh[1]}", mebibytes(sum(sent.values())), kinds))
        print(*rows[-1], flush=True)
    show(("data × peer", "MiB a device sends", "of these"), rows, what=f"{FLAGS.network} by dml")


def main(_):
    """Prints the tables."""
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    for name in FLAGS.tables:
        {"memory": memory, "wire": wire}[name]()


if __name__ == "__main__":
    app.run(main)
