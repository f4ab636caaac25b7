"""Common parts of the benchmarks: flags, groups on random images, timing, and tables."""

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
flags.DEFINE_integer("peers", 4, "Number of networks in the group, P.")
flags.DEFINE_integer("batch", 64, "Images per step.")
flags.DEFINE_integer("classes", 10, "Number of classes.")
flags.DEFINE_integer("rounds", 20, "Number of rounds; every variant runs once per round.")


def settings(method: str, size: int, **changes):
    """Return a config of equal peers.

    Args:
      method: name of the method.
      size: number of peers.
      **changes: settings of the method.
    """
    config = configs.default_config(method)
    config.batch_size = config.eval_batch_size = FLAGS.batch
    config.mesh.data = 1
    config.method.update(changes)
    config.peers = tuple(configs.peer(FLAGS.network) for _ in range(size))
    return config


def random_images():
    """Return noise with labels as (train images, train labels, test images, test labels).

    The time of a step does not depend on the content of its images.
    """
    rng = np.random.default_rng(0)
    count = 8 * FLAGS.batch
    images = rng.integers(0, 256, (count, FLAGS.size, FLAGS.size, FLAGS.channels), dtype=np.uint8)
    labels = rng.permutation(np.arange(count) % FLAGS.classes)
    return images, labels, images[: FLAGS.batch], labels[: FLAGS.batch]


def compiled_step(config):
    """Return (state, compiled train step, its further arguments, setup) of a config."""
    setup = prepare(config, random_images())
    state = init_state(*setup.state_args(), {})
    train_step, *_ = compile_steps(config, setup.group, setup.method)
    key = streams(0)[1]
    order = batches.epoch_order(key, 0, len(setup.train_split.labels), config.batch_size)
    args = (setup.train_split, setup.on_mesh(jax.device_get(order)))
    return state, train_step.lower(state, *args).compile(), args, setup


@contextmanager
def plain_convolutions():
    """Make networks that are built in this context use `lax.conv_general_dilated` itself."""
    ours = layers.per_peer_conv
    layers.per_peer_conv = lax.conv_general_dilated
    try:
        yield
    finally:
        layers.per_peer_conv = ours


def single_step():
    """Return (state, compiled train step, its further arguments) of one network alone.

    There is no stack, no method and no `jax.vmap`.
    """
    config = settings("ind", FLAGS.peers)
    setup = prepare(config, random_images())
    network = models.create(FLAGS.network, FLAGS.classes)
    optimizer = optimizers.optimizer(config.optimizer)
    order = setup.on_mesh(np.arange(4 * FLAGS.batch, dtype=np.int32).reshape(4, -1))

    def train(state, data, order):
        variables, opt_state, count = state
        positions = order[count % len(order)]
        changes = batches.draw_augmentation(jax.random.key(count), config.data, (FLAGS.batch,))
        images = batches.take(data, positions, changes, "zero")

        def loss(params):
            logits, stats = network.apply(
                variables | {"params": params}, images, train=True, mutable="batch_stats"
            )
            return losses.cross_entropy(logits, data.labels[positions]).mean(), stats

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
    """Return the peak memory of a compiled program in bytes, by its own analysis."""
    analysis = program.memory_analysis()
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def repeated(state, program, args):
    """Return a function that runs the next step of a program and waits for it."""

    def step():
        nonlocal state
        state = program(state, *args)
        jax.block_until_ready(state)

    return step


def alternate(
    run: dict, before: Callable = lambda name: None, rounds: int | None = None
) -> dict[str, np.ndarray]:
    """Time functions that take turns.

    Args:
      run: name → function.
      before: called with the name before each call of its function, outside of the timing.
      rounds: number of rounds; None: `--rounds`.

    Returns:
      Name → seconds of each round. The first round, of all functions, is not counted.
    """
    for function in run.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds or FLAGS.rounds):
        for name, function in run.items():
            before(name)
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: np.array(seconds) for name, seconds in times.items()}


def show(
    columns: tuple[str, ...], rows: list, *notes: str, what: str = "", group: str = ""
) -> None:
    """Print a table below a line that names the group, the device and the number of rounds.

    Args:
      columns: names of the columns.
      rows: texts of the cells.
      *notes: lines below the table.
      what: name of the networks; by default `--network`.
      group: description of the group, the images and the batch; by default that of the flags.
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
    """Return the first and the third quartile of ratios, for a table."""
    low, high = np.percentile(ratio, [25, 75])
    return f"{low:.3f} to {high:.3f}"
