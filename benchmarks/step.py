"""`python -m benchmarks.step` measures what the parts of a step cost.

These programs take turns in one process:
  single     one network alone, without a stack and `jax.vmap`;
  stack      P equal peers that do not teach each other (ind);
  orc_peers  ORC without a pivot;
  orc        ORC with a pivot and P students;
  two-pass   the same with ranking as a program of its own before the step, so that the students
             run forward twice, as the method is usually written down;
  grouped    the stack with its convolutions left to plain `jax.vmap`.
Ratios are medians over rounds of time / (P × single) in the same round. Peak memory is that of the
compiled program's own analysis (empty for two-pass, which is two programs).
"""

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks.common import (
    FLAGS,
    alternate,
    compiled_step,
    peak_bytes,
    plain_convolutions,
    quartiles,
    repeated,
    settings,
    show,
    single_step,
)
from orc_jax import losses, passes
from orc_jax.data import batches

flags.DEFINE_bool("grouped", True, "Also time plain vmap (about 20 times slower on a CPU).")


def ranking_pass(setup):
    """Return the index of the students' stack, and a program for their cross-entropy on a batch."""
    (students,) = [stack for stack in setup.group.stacks if 0 not in stack.peers]

    def rank(stack_state, data, order):
        images = batches.normalise(data, data.images[order[0]])
        logits = passes.forward(students, stack_state, images).outputs.logits
        return losses.cross_entropy(logits, data.labels[order[0]]).mean(axis=1)

    spec = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        rank, mesh=setup.group.mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
    )
    return setup.group.stacks.index(students), jax.jit(mapped)


def variants():
    """Return name → function that runs one step and waits for it, and name → peak bytes."""
    size, run, memory = FLAGS.peers, {}, {}

    def add(name, state, program, args, *_):
        run[name], memory[name] = repeated(state, program, args), peak_bytes(program)

    add("single", *single_step())
    add("stack", *compiled_step(settings("ind", size)))
    add("orc_peers", *compiled_step(settings("orc", size, pivot=None)))
    add("orc", *compiled_step(settings("orc", size + 1, pivot=0)))

    state, program, args, setup = compiled_step(settings("orc", size + 1, pivot=0))
    index, rank = ranking_pass(setup)

    def two_pass(state, *args):
        jax.block_until_ready(rank(state.stacks[index], *args))
        return program(state, *args)

    run["two-pass"] = repeated(state, two_pass, args)
    if FLAGS.grouped:
        with plain_convolutions():
            add("grouped", *compiled_step(settings("ind", size)))
    return run, memory


def main(_):
    """Print the table."""
    logging.set_verbosity(logging.WARNING)
    run, memory = variants()
    times = alternate(run)
    rows = []
    for name, seconds in times.items():
        ratio = seconds / (FLAGS.peers * times["single"])
        rows.append(
            (
                name,
                f"{1000 * np.median(seconds):.1f}",
                f"{np.median(ratio):.3f}",
                quartiles(ratio),
                f"{memory[name] / 2**20:.1f}" if name in memory else "",
            )
        )
    ratio = np.median(times["two-pass"] / times["orc"])
    columns = ("variant", "ms a step", "÷ (P × single)", "quartiles", "peak MiB")
    show(columns, rows, f"two-pass ÷ orc: {ratio:.3f}")


if __name__ == "__main__":
    app.run(main)
