"""What a PyTorch program needs for the same: `python -m benchmarks.versus_torch`.

Needs `pip install -e '.[bench]'`. Trains each row's group by the same method on the same images
three times over, alternating in one run: here, in a PyTorch program (`torch_group.py`) as it
is, and in the same with its networks and losses through `torch.compile`. Both sides make their
batches as in real training: ours from the images on the device, PyTorch's by a DataLoader, with
the memory format and the number of workers that are fastest here. Before that each PyTorch
program takes a step from our weights on a batch of ours, and must have our losses.

The ratio is images a second of ours over theirs within a round: median and quartiles. CIFAR is
read from data/ as in training; where it is not there the images are random ones of its size.
"""

import os
import time
from functools import partial
from itertools import chain, islice, repeat

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags, logging

from benchmarks import torch_group
from benchmarks.common import FLAGS, alternate, peak_bytes, quartiles, show
from configs import cifar100, digits
from orc_jax import data as datasets
from orc_jax import peers
from orc_jax.data import batches
from orc_jax.errors import UserError
from orc_jax.methods.orc import draw_feedback
from orc_jax.prepare import prepare
from orc_jax.state import init_state, streams
from orc_jax.step import compile_steps
from orc_jax.trained.torch_weights import torch_tensors
from orc_jax.training import training_batches

# name → (config file, its preset, whether it needs a GPU).
ROWS = {
    "digits": (digits, "orc", False),
    "resnet32": (cifar100, "orc:" + ",".join(["resnet32"] * 4), False),
    "orc": (cifar100, "orc", False),
    "dcm": (cifar100, "dcm", True),
}
flags.DEFINE_list("rows", None, f"Of {', '.join(ROWS)}; by default those that fit the platform.")
flags.DEFINE_integer("steps", 5, "Steps a round; one step more, before them, does not count.")
FLAGS.set_default("rounds", 10)
FLAGS.set_default("batch", None)  # the recipe's own
TOLERANCE = 1e-4  # relative, of a loss
SETTLE = 0.2  # seconds until the other side's threads sleep


class Ours:
    """Training as orc_jax's loop does it.

    Args:
      config: the whole config.
      data: train images and labels, test images and labels.
    """

    def __init__(self, config, data):
        self.setup = prepare(config, data)
        self.state = init_state(*self.setup.state_args(), {})
        train_step, *_ = compile_steps(self.setup.config, self.setup.group, self.setup.method)
        self.following = training_batches(self.setup, 0)
        self.program = train_step.lower(self.state, *next(self.following)).compile()
        self.peak = peak_bytes(self.program)

    def lead_in(self):
        """Nothing is prepared ahead of a step."""

    def step(self):
        """Starts a step."""
        self.state = self.program(self.state, *next(self.following))

    def wait(self):
        """Waits for all steps."""
        jax.block_until_ready(self.state)


class Theirs:
    """Training as the PyTorch program does it.

    Args:
      group: of `torch_group`.
      loader: a DataLoader.
      peak: its peak memory in bytes, None where it is not known.
    """

    def __init__(self, group, loader, peak):
        self.group, self.peak = group, peak
        self.ahead = loader.num_workers * (loader.prefetch_factor or 0)
        self.following = chain.from_iterable(repeat(loader))

    def lead_in(self):
        """Drops the batches that workers made ahead while the other side ran."""
        for _ in islice(self.following, self.ahead):
            pass

    def step(self):
        """Starts a step."""
        self.group.step(*next(self.following))

    def wait(self):
        """Waits for all steps."""
        if self.group.device == "cuda":
            torch.cuda.synchronize()


def arrays(config):
    """The config's data as `prepare` takes arrays, and what it is, for the reader."""
    try:
        train, test, _ = datasets.load(config)
        return (*train, *test), config.data.name
    except UserError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
        labels = rng.permutation(np.arange(len(images)) % 100)
        return (images, labels, images[:500], labels[:500]), "random images"


def weights(setup, state) -> list[dict[str, np.ndarray]]:
    """`torch_tensors` of every peer."""
    found = {}
    for stack, stack_state in zip(setup.group.stacks, state.stacks, strict=True):
        for i, peer in enumerate(stack.peers):
            variables = {"params": stack_state.params, "batch_stats": stack_state.stats}
            found[peer] = torch_tensors(stack.name, peers.select(variables, i))
    return [found[peer] for peer in range(setup.group.size)]


def same_losses(side: Ours, group) -> None:
    """Checks that a PyTorch group computes our losses, from the same weights on the same batch.

    The random draws of that step are made again here, as `orc_jax.step` and
    `orc_jax.methods.orc` make them, and handed to PyTorch.

    Args:
      side: ours, in float32.
      group: of `torch_group`, of the same config but for its precision; it takes a step.

    Raises:
      ValueError: a network's losses differ by more than `TOLERANCE`.
    """
    setup, config = side.setup, side.setup.config
    # In the last epoch the learning rate is small: what ORC's students learn from their pivot
    # comes after its optimizer step, which a large one would make chaotic.
    step = (config.epochs - 1) * setup.steps_per_epoch
    split, order = next(training_batches(setup, step))
    state = jax.tree.map(jnp.copy, side.state).replace(step=setup.on_mesh(np.int32(step)))
    rates = {i: stack.learning_rate(step) for stack in setup.group.stacks for i in stack.peers}

    key = jax.random.fold_in(streams(config.seed)[2], step)
    augmentation_key, method_key = jax.random.split(key)
    changes = batches.draw_augmentation(augmentation_key, config.data, order[0].shape)
    images = np.asarray(batches.take(split, order[0], changes, config.data.pad_mode))
    labels = np.asarray(split.labels[order[0]], np.int64)

    def draw(cross_entropy, wrong):
        _, feedback_key, mixup_key = jax.random.split(method_key, 3)
        pivot, alpha = config.method.pivot, config.method.mixup_alpha
        # PyTorch gives the students' rows alone.
        rows = (np.insert(x.cpu().numpy(), pivot, 0, axis=0) for x in (cross_entropy, wrong))
        students = jnp.arange(setup.group.size) != pivot
        feedback, _ = draw_feedback(feedback_key, *rows, students)
        lam = float(jax.random.beta(mixup_key, alpha, alpha))
        return torch.tensor(np.asarray(feedback), device=group.device), lam

    group.load(weights(setup, state))
    with group.exactly([float(rates[i]) for i in range(setup.group.size)]):
        theirs = group.step(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels), draw)
    theirs = theirs.cpu().numpy()
    ours = np.asarray(side.program(state, split, order).sums["loss"])
    if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=0):
        raise ValueError(
            f"from the same weights and batch the networks' losses are {ours.tolist()} in "
            f"orc_jax and {theirs.tolist()} in PyTorch: nothing is timed"
        )


def peak_of(group, batch, before: int) -> int | None:
    """Peak bytes of a step on a GPU, above what other programs held before."""
    if group.device == "cpu":
        return None
    for _ in range(2):  # cuDNN tries its algorithms first
        group.step(*batch)
    torch.cuda.reset_peak_memory_stats()
    group.step(*batch)
    return torch.cuda.max_memory_allocated() - before


def timed(sides: dict, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of `--steps` steps of every side in every round."""

    def steps(side):
        for _ in range(FLAGS.steps):
            side.step()
        side.wait()

    def before(name):
        time.sleep(SETTLE)
        sides[name].lead_in()
        sides[name].step()
        sides[name].wait()

    return alternate({name: partial(steps, side) for name, side in sides.items()}, before, rounds)


def fastest(sides: dict):
    """The key of the side that takes the least time."""
    seconds = timed(sides, rounds=2)
    return min(seconds, key=lambda name: seconds[name].min())


def torch_sides(side: Ours, checked: Ours, device: str) -> tuple[dict, list[str]]:
    """The PyTorch programs by name, checked and at their fastest, and notes on them.

    Args:
      side: ours.
      checked: the same in float32.
      device: "cpu" or "cuda".
    """
    config, dataset, split = side.setup.config, side.setup.dataset, side.setup.train_split
    images = torch_group.Images(*dataset.train, *map(np.asarray, split[2:]), config.data)
    loader = partial(torch_group.loader, images, config.batch_size, device=device)
    batch = next(iter(loader(0)))

    def build(layout, compiled, workers):
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        group = torch_group.Group(
            config, dataset.num_classes, dataset.image_shape[-1], device, layout, compiled
        )
        same_losses(checked, group)
        return Theirs(group, loader(workers), peak_of(group, batch, before))

    layouts = {
        layout: build(layout, False, 0) for layout in (torch.contiguous_format, torch.channels_last)
    }
    layout = fastest(layouts)
    eager = layouts.pop(layout)
    layouts.clear()  # frees the other's memory
    by_workers = {0: eager} | {n: Theirs(eager.group, loader(n), eager.peak) for n in (1, 2)}
    workers = fastest(by_workers)
    notes = [f"{FLAGS.steps} steps a round; PyTorch: {layout}, {workers} workers of the DataLoader"]
    sides = {"PyTorch eager": by_workers[workers]}
    try:
        sides["torch.compile"] = build(layout, True, workers)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        notes.append(f"torch.compile is unavailable: {type(error).__name__}: {reason}")
    return sides, notes


def compare(name: str, device: str) -> None:
    """Trains a row's group on all sides and prints its table."""
    recipes, preset, _ = ROWS[name]
    config = recipes.get_config(preset)
    config.batch_size = FLAGS.batch or config.batch_size
    config.epochs = 10_000  # more than are asked for
    config.mesh.data = 1
    data, what = arrays(config)
    if device == "cpu":
        ours = checked = Ours(config, data)
    else:
        # In float32 fewer images fill the memory, and do for the check.
        config.batch_size, batch_size = 16, config.batch_size
        with jax.default_matmul_precision("highest"):
            checked = Ours(config, data)
        config.batch_size, config.precision = batch_size, "bfloat16"
        ours = Ours(config, data)
    sides, notes = torch_sides(ours, checked, device)
    del checked
    sides = {"orc_jax": ours} | sides
    seconds = timed(sides, FLAGS.rounds)

    rows = []
    for program, times in seconds.items():
        ratio, peak = times / seconds["orc_jax"], sides[program].peak
        step = np.median(times) / FLAGS.steps
        rows.append(
            (
                program,
                f"{config.batch_size / step:.0f}",
                f"{1000 * step:.1f}",
                "" if peak is None else f"{peak / 2**20:.0f}",
                "" if program == "orc_jax" else f"{np.median(ratio):.3f}",
                "" if program == "orc_jax" else quartiles(ratio),
            )
        )
    if device == "cpu":
        notes.append("peak memory: of our compiled program; PyTorch does not count it on a CPU")
    names, shape = ours.setup.group.names, "×".join(map(str, ours.setup.dataset.image_shape))
    networks = f"{len(names)} × {names[0]}" if len(set(names)) == 1 else " | ".join(names)
    show(
        ("program", "images/s", "ms a step", "peak MiB", "ours ÷ this", "quartiles"),
        rows,
        *notes,
        group=f"{name}: {config.method.name}, {networks}, {what} {shape}, {config.precision}, "
        f"batch {config.batch_size}",
    )


def main(_):
    """Prints a table for each row."""
    logging.set_verbosity(logging.WARNING)
    # JAX would take most of a GPU's memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise app.UsageError("JAX has a GPU here and PyTorch has none: install its CUDA build")
    if unknown := set(FLAGS.rows or ()) - ROWS.keys():
        raise app.UsageError(f"--rows has {', '.join(unknown)}, allowed: {', '.join(ROWS)}")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # float32 is for the check alone
    # Networks of one class share the compiler's cache, which falls back to eager when full.
    torch._dynamo.config.recompile_limit = 64
    for name in FLAGS.rows or ROWS:
        if ROWS[name][2] and device == "cpu":
            print(f"{name}: needs a GPU, here is none")
        else:
            compare(name, device)


if __name__ == "__main__":
    app.run(main)
