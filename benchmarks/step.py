"""What a step costs: `python -m benchmarks.step`.

Times, alternating in one run:
  single     one network alone: no stack, no vmap, plain convolutions;
  stack      P equal peers that do not teach each other (ORC with every teaching off);
  orc_peers  ORC without a pivot;
  orc        ORC with a pivot besides the P students;
  two-pass   the same, but with ranking as a separate program before the step, so that the
             students run forward twice, as the method is usually written down;
  grouped    the stack with convolutions left to plain `jax.vmap`.
Ratios are medians over rounds of time / (P × single) within the round. Peak memory is the
compiled program's own analysis (none for two-pass, which is two programs).
"""

import time
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from jax import lax
from rich.console import Console
from rich.table import Table

from orc_jax import config as configs
from orc_jax import losses, models, optimizers, peers, step
from orc_jax.data import batches
from orc_jax.models import layers
from orc_jax.run import prepare

FLAGS = flags.FLAGS
flags.DEFINE_string("network", "resnet8", "Network of every peer.")
flags.DEFINE_integer("size", 8, "Height and width of the images.")
flags.DEFINE_integer("channels", 1, "Channels of the images.")
flags.DEFINE_integer("peers", 4, "Networks in the group, P.")
flags.DEFINE_integer("batch", 64, "Images a step.")
flags.DEFINE_integer("classes", 10, "Classes.")
flags.DEFINE_integer("rounds", 20, "Rounds; every variant runs once a round.")
flags.DEFINE_bool("grouped", True, "Also time plain vmap (on a CPU some 20 times slower).")


def settings(size, **method):
    """A config of `size` equal peers; keywords go to config.method."""
    config = configs.default("orc")
    config.batch_size = config.eval_batch_size = FLAGS.batch
    config.mesh.data = 1
    config.method.update(method)
    config.peers = tuple(configs.peer(FLAGS.network) for _ in range(size))
    return config


def random_images():
    """Labelled noise: time does not depend on what is in the pictures."""
    rng = np.random.default_rng(0)
    n = 8 * FLAGS.batch
    images = rng.integers(0, 256, (n, FLAGS.size, FLAGS.size, FLAGS.channels), dtype=np.uint8)
    labels = rng.permutation(np.arange(n) % FLAGS.classes)
    return images, labels, images[: FLAGS.batch], labels[: FLAGS.batch]


@contextmanager
def plain_convolutions():
    """Networks built within use `lax.conv_general_dilated` itself."""
    ours = layers.per_peer_conv
    layers.per_peer_conv = lax.conv_general_dilated
    try:
        yield
    finally:
        layers.per_peer_conv = ours


def compiled_step(config):
    """(state, compiled program, its further arguments, setup) of a config."""
    setup = prepare(config, random_images())
    state = step.init_state(*setup.state_args(), {})
    train_step, _ = step.compile_steps(config, setup.group, setup.method)
    key = step.streams(0)[1]
    order = batches.epoch_order(key, 0, len(setup.dataset.train.labels), config.batch_size)
    args = (setup.train_split, setup.on_mesh(jax.device_get(order)))
    return state, train_step.lower(state, *args).compile(), args, setup


def single_step():
    """The same for one network, as one writes it in Flax without any of our code."""
    config = settings(FLAGS.peers)
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
        logits, _, _ = peers.forward(students, stack_state, images)
        return losses.cross_entropy(logits, data.labels[order[0]]).mean(axis=1)

    spec = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        rank, mesh=setup.group.mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
    )
    return setup.group.stacks.index(students), jax.jit(mapped)


def variants():
    """name → function that does one step and waits for it; and name → peak bytes."""
    size, run, memory = FLAGS.peers, {}, {}
    off = {"pivot": None, "intensive": False, "private": False, "group": False}

    def add(name, state, program, args, before=lambda state: None):
        box = [state]

        def once():
            before(box[0])
            box[0] = program(box[0], *args)
            jax.block_until_ready(box[0])

        analysis = program.memory_analysis()
        memory[name] = (
            analysis.temp_size_in_bytes
            + analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
        )
        run[name] = once

    with plain_convolutions():
        add("single", *single_step())
    add("stack", *compiled_step(settings(size, **off))[:3])
    add("orc_peers", *compiled_step(settings(size, pivot=None))[:3])
    add("orc", *compiled_step(settings(size + 1, pivot=0))[:3])

    state, program, args, setup = compiled_step(settings(size + 1, pivot=0))
    index, rank = ranking_pass(setup)
    add(
        "two-pass",
        state,
        program,
        args,
        before=lambda state: jax.block_until_ready(rank(state.stacks[index], *args)),
    )
    if FLAGS.grouped:
        with plain_convolutions():
            add("grouped", *compiled_step(settings(size, **off))[:3])
    return run, memory


def main(_):
    """Prints the table."""
    logging.set_verbosity(logging.WARNING)
    run, memory = variants()
    for once in run.values():
        once()
    times = {name: [] for name in run}
    for _ in range(FLAGS.rounds):
        for name, once in run.items():
            began = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - began)

    title = (
        f"{FLAGS.peers} × {FLAGS.network}, {FLAGS.size}×{FLAGS.size}×{FLAGS.channels}, "
        f"batch {FLAGS.batch}, {jax.devices()[0].device_kind}, {FLAGS.rounds} rounds"
    )
    table = Table(title=title, title_justify="left")
    for column in ("variant", "ms a step", "÷ (P × single)", "quartiles", "peak MiB"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    single = FLAGS.peers * np.array(times["single"])
    for name, seconds in times.items():
        ratio = np.array(seconds) / single
        low, high = np.percentile(ratio, [25, 75])
        table.add_row(
            name,
            f"{1000 * np.median(seconds):.1f}",
            f"{np.median(ratio):.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if name == "two-pass" else f"{memory[name] / 2**20:.1f}",
        )
    ratio = np.median(np.array(times["two-pass"]) / np.array(times["orc"]))
    console = Console(width=100)
    console.print(table)
    console.print(f"two-pass ÷ orc: {ratio:.3f}", highlight=False)


if __name__ == "__main__":
    app.run(main)
