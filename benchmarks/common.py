"""What the benchmarks share: flags, groups on random images, alternating rounds."""

import time
from collections.abc import Callable
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax import lax
from rich.console import Console
from rich.table import Table

from orc_jax import config as configs
from orc_jax import losses, models, optimizers
from orc_jax.data import batches
from orc_jax.models import layers
from orc_jax.prepare import prepare
from orc_jax.state import init_state, streams
from orc_jax.step import compile_steps

FLAGS = flags.FLAGS
flags.DEFINE_string("network", "resnet8", "Network of every peer.")
flags.DEFINE_integer("size", 8, "Height and width of the images.")
flags.DEFINE_integer("channels", 1, "Channels of the images.")
flags.DEFINE_integer("peers", 4, "Networks in the group, P.")
flags.DEFINE_integer("batch", 64, "Images a step.")
flags.DEFINE_integer("classes", 10, "Classes.")
flags.DEFINE_integer("rounds", 20, "Rounds; every variant runs once a round.")


def settings(method: str, size: int, **changes):
    """A config of `size` equal peers; keywords go to config.method."""
    config = configs.default_config(method)
    config.batch_size = config.eval_batch_size = FLAGS.batch
    config.mesh.data = 1
    config.method.update(changes)
    config.peers = tuple(configs.peer(FLAGS.network) for _ in range(size))
    return config


def random_images():
    """Labelled noise: time does not depend on what is in the pictures."""
    rng = np.random.default_rng(0)
    n = 8 * FLAGS.batch
    images = rng.integers(0, 256, (n, FLAGS.size, FLAGS.size, FLAGS.channels), dtype=np.uint8)
    labels = rng.permutation(np.arange(n) % FLAGS.classes)
    return images, labels, images[: FLAGS.batch], labels[: FLAGS.batch]


def compiled_step(config):
    """(state, compiled train step, its further arguments, setup) of a config."""
    setup = prepare(config, random_images())
    state = init_state(*setup.state_args(), {})
    train_step, *_ = compile_steps(config, setup.group, setup.method)
    key = streams(0)[1]
    order = batches.epoch_order(key, 0, len(setup.train_split.labels), config.batch_size)
    args = (setup.train_split, setup.on_mesh(jax.device_get(order)))
    return state, train_step.lower(state, *args).compile(), args, setup


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
    """The same for one network, without a stack, a method and `jax.vmap`."""
    config = settings("ind", FLAGS.peers)
    setup = prepare(config, random_images())
    network = models.create(FLAGS.network, FLAGS.classes)
    optimizer = optimizers.optimizer(config.optimizer)
    order = setup.on_mesh(np.arange(4 * FLAGS.batch, dtype=np.int32).reshape(4, -1))

    def train(state, data, order):
        variables, opt_state, count = state
        at = order[count % len(order)]
        changes = batches.draw_augmentation(jax.random.key(count), config.data, (FLAGS.batch,))
        images = batches.take(data, at, changes, "zero")

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


def peak_bytes(program) -> int:
    """Peak memory of a compiled program, by its own analysis."""
    analysis = program.memory_analysis()
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def repeated(state, program, args):
    """A function that does one step more and waits for it."""
    box = [state]

    def once():
        box[0] = program(box[0], *args)
        jax.block_until_ready(box[0])

    return once


def alternate(
    run: dict, before: Callable = lambda name: None, rounds: int | None = None
) -> dict[str, np.ndarray]:
    """Seconds of every function in every round, after one round that does not count.

    Args:
      run: name → function.
      before: called with the name before each call of its function, not counted.
      rounds: how many, by default `--rounds`.
    """
    for once in run.values():
        once()
    times: dict = {name: [] for name in run}
    for _ in range(rounds or FLAGS.rounds):
        for name, once in run.items():
            before(name)
            began = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - began)
    return {name: np.array(seconds) for name, seconds in times.items()}


def show(
    columns: tuple[str, ...], rows: list, *notes: str, what: str = "", group: str = ""
) -> None:
    """Prints a table with what was run and where above it.

    Args:
      columns, rows, notes: of the table; notes come below it.
      what: the network, by default `--network`.
      group: networks, size of the images and batch, where the flags do not say them.
    """
    group = group or (
        f"{FLAGS.peers} × {what or FLAGS.network}, {FLAGS.size}×{FLAGS.size}×{FLAGS.channels}, "
        f"batch {FLAGS.batch}"
    )
    title = f"{group}, {jax.devices()[0].device_kind}, {FLAGS.rounds} rounds"
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=100)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def quartiles(ratio) -> str:
    """The middle half of some ratios."""
    low, high = np.percentile(ratio, [25, 75])
    return f"{low:.3f} to {high:.3f}"
