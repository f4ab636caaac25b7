"""What a step costs: `python -m benchmarks.step`.

Times, alternating in one run:
  single     one network alone: no stack, no vmap, plain convolutions;
  stack      P equal peers that do not teach each other (ind);
  orc_peers  ORC without a pivot;
  orc        ORC with a pivot besides the P students;
  two-pass   the same, but with ranking as a separate program before the step, so that the
             students run forward twice, as the method is usually written down;
  grouped    the stack with convolutions left to plain `jax.vmap`.
Ratios are medians over rounds of time / (P × single) within the round. Peak memory is the
compiled program's own analysis (none for two-pass, which is two programs).
"""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from jax import lax

from benchmarks.common import (
    FLAGS,
    alternate,
    compiled_step,
    peak_bytes,
    quartiles,
    random_images,
    repeated,
    settings,
    show,
)
from orc_jax import losses, models, optimizers, passes
from orc_jax.data import batches
from orc_jax.models import layers
from orc_jax.run import prepare

flags.DEFINE_bool("grouped", True, "Also time plain vmap (on a CPU some 20 times slower).")


@contextmanager
def plain_convolutions():
    """Networks built within use `lax.conv_general_dilated` itself."""
    ours = layers.per_peer_conv
    layers.per_peer_conv = lax.conv_general_dilated
    try:
        yield
    finally:
        layers.per_peer_conv = ours


def single_step():
    """The same for one network, as one writes it in Flax without any of our code."""
    config = settings("ind", FLAGS.peers)
    setup = prepare(config, random_images())
    network = models.create(FLAGS.network, FLAGS.classes)
    optimizer = optimizers.optimizer(config.optimizer)
    order = setup.on_mesh(np.arange(4 * FLAGS.batch, dtype=np.int32).reshape(4, -1))

    def train(state, data, order):
        variables, opt_state, count = state
        at = order[count % len(order)]
        moves = batches.draw_augmentation(jax.random.key(count), config, (FLAGS.batch,))
        images = batches.take(data, at, moves, "zero")

        def loss(params):
            logits, stats = network.apply(
                variables | {"params": params}, images, train=True, mutable="batch_stats"
            )
            return losses.cross_entropy(logits, data.labels[at]).mean(), stats

        grads, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        updates = jax.tree.map(lambda u: -0.1 * u, updates)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **stats}, opt_state, count + 1

    images = jnp.zeros((1, FLAGS.size, FLAGS.size, FLAGS.channels))
    variables = network.init(jax.random.key(0), images, train=False)
    state = (variables, optimizer.init(variables["params"]), jnp.int32(0))
    args = (setup.train_split, order)
    program = jax.jit(train, donate_argnums=0).lower(state, *args).compile()
    return state, program, args


def ranking_pass(setup):
    """A program that only ranks: the students' cross-entropy on a batch."""
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
    """name → function that does one step and waits for it; and name → peak bytes."""
    size, run, memory = FLAGS.peers, {}, {}

    def add(name, state, program, args, *_):
        run[name], memory[name] = repeated(state, program, args), peak_bytes(program)

    with plain_convolutions():
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
    """Prints the table."""
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
