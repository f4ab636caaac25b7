"""`python -m benchmarks.versus_torch` compares orc_jax with a PyTorch program of the same method.

It needs `pip install -e '.[bench]'`. The group of each row is trained on the same images by three
programs that take turns in one process: orc_jax, a PyTorch program (`torch_group.py`), and the same
PyTorch program with its networks and losses through `torch.compile`. All of them make their batches
as in real training: orc_jax from the images on the device, PyTorch by a DataLoader, with the memory
format and the number of workers that are fastest on this machine. Before that, each PyTorch program
takes a step from our weights on one of our batches, and its losses must be ours.

Ratios are our images per second over theirs within a round, median and quartiles. CIFAR is read
from data/ as in training; if it is not there, random images of its size take its place.
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
from orc_jax.data.mixing import draw_lambda
from orc_jax.errors import UserError
from orc_jax.loop import training_batches
from orc_jax.methods.orc import draw_feedback
from orc_jax.prepare import prepare
from orc_jax.state import init_state, streams
from orc_jax.step import compile_steps
from orc_jax.trained.torch_weights import torch_tensors

# Name → (config file, preset, whether it needs a GPU).
ROWS = {
    "digits": (digits, "orc", False),
    "resnet32": (cifar100, "orc:" + ",".join(["resnet32"] * 4), False),
    "orc": (cifar100, "orc", False),
    "dcm": (cifar100, "dcm", True),
}
flags.DEFINE_list(
    "rows", None, f"Some of {', '.join(ROWS)}; default: all that this machine can run."
)
flags.DEFINE_list("precisions", "bfloat16", "On a GPU: some of float32, tf32, bfloat16.")
flags.DEFINE_bool("compiled", True, "Also measure torch.compile, which compiles for minutes.")
flags.DEFINE_integer("steps", 5, "Steps per round; one more step before them is not timed.")
FLAGS.set_default("rounds", 10)
FLAGS.set_default("batch", None)  # that of the recipe
# Largest relative difference of a loss.
TOLERANCE = 1e-4
TF32_TOLERANCE = 1e-2
SETTLE = 0.2  # seconds until the threads of the other program sleep


class Ours:
    """Training as in the loop of orc_jax.

    Args:
      config: the whole config.
      data: (train images, train labels, test images, test labels).
      options: of XLA's compiler.
    """

    def __init__(self, config, data, options: dict | None = None):
        self.setup = prepare(config, data)
        self.state = init_state(*self.setup.state_args(), {})
        train_step, *_ = compile_steps(self.setup.config, self.setup.group, self.setup.method)
        self.following = training_batches(self.setup, 0)
        self.program = train_step.lower(self.state, *next(self.following)).compile(options)
        self.peak = peak_bytes(self.program)

    def lead_in(self):
        """Do nothing: no batch is prepared ahead of its step."""

    def step(self):
        """Start a step."""
        self.state = self.program(self.state, *next(self.following))

    def wait(self):
        """Wait for all steps."""
        jax.block_until_ready(self.state)


class Theirs:
    """Training as in the PyTorch program.

    Args:
      group: a `torch_group.Group`.
      loader: the DataLoader of an epoch.
      peak: peak memory of a step in bytes; None if it is unknown.
    """

    def __init__(self, group, loader, peak):
        self.group, self.peak = group, peak
        self.ahead = loader.num_workers * (loader.prefetch_factor or 0)
        self.following = chain.from_iterable(repeat(loader))

    def lead_in(self):
        """Drop the batches that workers have prepared while another program ran."""
        for _ in islice(self.following, self.ahead):
            pass

    def step(self):
        """Start a step."""
        self.group.step(*next(self.following))

    def wait(self):
        """Wait for all steps."""
        if self.group.device == "cuda":
            torch.cuda.synchronize()


def arrays(config):
    """Return the images of a config as arrays for `prepare`, and their name for the table."""
    try:
        train, test = datasets.load(config)[:2]
        return (*train, *test), config.data.name
    except UserError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
        labels = rng.permutation(np.arange(len(images)) % 100)
        return (images, labels, images[:500], labels[:500]), "random images"


def weights(setup, state) -> list[dict[str, np.ndarray]]:
    """Return the weights of every peer by PyTorch's names, see `torch_tensors`."""
    tensors = {}
    for stack, stack_state in zip(setup.group.stacks, state.stacks, strict=True):
        members = stack_state.members  # neither ORC nor DCM has a trunk
        variables = {"params": members.params, "batch_stats": members.stats}
        for i, peer in enumerate(stack.peers):
            tensors[peer] = torch_tensors(stack.name, peers.select(variables, i))
    return [tensors[peer] for peer in range(setup.group.size)]


def same_losses(side: Ours, group, tolerance: float = TOLERANCE) -> None:
    """Check that a PyTorch group has our losses, from the same weights on the same batch.

    The random draws of that step are repeated here, as in `orc_jax.step` and
    `orc_jax.methods.orc`, and given to PyTorch.

    Args:
      side: our program in float32.
      group: a `torch_group.Group` of the same config except for its precision; it takes a step.
      tolerance: largest relative difference.

    Raises:
      ValueError: the losses of a network differ by more.
    """
    setup, config = side.setup, side.setup.config
    # The step is of the last epoch, where the learning rate is small: ORC's students learn from
    # the pivot after its optimizer step, and a large step would amplify rounding.
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
        # The PyTorch program has no row for the pivot.
        rows = (
            jnp.asarray(np.insert(x.cpu().numpy(), pivot, 0, axis=0))
            for x in (cross_entropy, wrong)
        )
        students = jnp.arange(setup.group.size) != pivot
        feedback, _ = draw_feedback(feedback_key, *rows, students)
        lam = float(draw_lambda(mixup_key, alpha))
        return torch.tensor(np.asarray(feedback), device=group.device), lam

    group.load(weights(setup, state))
    with group.exactly([float(rates[i]) for i in range(setup.group.size)]):
        theirs = group.step(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels), draw)
    theirs = theirs.cpu().numpy()
    ours = np.asarray(side.program(state, split, order).sums["loss"])
    if not np.allclose(ours, theirs, rtol=tolerance, atol=0):
        raise ValueError(
            f"from the same weights and batch the networks' losses are {ours.tolist()} in "
            f"orc_jax and {theirs.tolist()} in PyTorch: nothing is timed"
        )


def peak_of(group, batch, before: int) -> int | None:
    """Return the peak memory of a step in bytes, or None on a CPU.

    Args:
      group: a `torch_group.Group`.
      batch: images and labels.
      before: bytes that other programs hold.
    """
    if group.device == "cpu":
        return None
    for _ in range(2):  # in the first steps cuDNN tries its algorithms
        group.step(*batch)
    torch.cuda.reset_peak_memory_stats()
    group.step(*batch)
    return torch.cuda.max_memory_allocated() - before


def timed(sides: dict, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of `--steps` steps of every program in every round."""

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
    """Return the key of the program that takes the least time."""
    seconds = timed(sides, rounds=2)
    return min(seconds, key=lambda name: seconds[name].min())


def torch_sides(side: Ours, checked: Ours, device: str, precision: str) -> tuple[dict, list[str]]:
    """Return the PyTorch programs by name, in their fastest form, and notes for the table.

    Args:
      side: our program.
      checked: our program in float32, with which their losses are compared.
      device: "cpu" or "cuda".
      precision: see `compare`.
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
        same_losses(checked, group, TF32_TOLERANCE if precision == "tf32" else TOLERANCE)
        return Theirs(group, loader(workers), peak_of(group, batch, before))

    layouts = {
        layout: build(layout, False, 0) for layout in (torch.contiguous_format, torch.channels_last)
    }
    layout = fastest(layouts)
    eager = layouts.pop(layout)
    layouts.clear()  # free the memory of the other
    by_workers = {0: eager} | {n: Theirs(eager.group, loader(n), eager.peak) for n in (1, 2)}
    workers = fastest(by_workers)
    notes = [f"{FLAGS.steps} steps a round; PyTorch: {layout}, {workers} workers of the DataLoader"]
    sides = {"PyTorch eager": by_workers[workers]}
    try:
        if FLAGS.compiled:
            sides["torch.compile"] = build(layout, True, workers)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        notes.append(f"torch.compile is unavailable: {type(error).__name__}: {reason}")
    return sides, notes


def compare(name: str, device: str, precision: str) -> None:
    """Train the group of a row by all programs and print the table.

    Args:
      name: of the row.
      device: "cpu" or "cuda".
      precision: "float32", "tf32" (float32 whose products are rounded to 10 bits) or "bfloat16".
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    recipes, preset, _ = ROWS[name]
    config = recipes.get_config(preset)
    config.batch_size = FLAGS.batch or config.batch_size
    config.epochs = 10_000  # more than will be trained
    config.mesh.data = 1
    data, what = arrays(config)
    if device == "cpu":
        ours = checked = Ours(config, data)
    else:
        # The check in float32 needs more memory per image, and few images suffice.
        config.batch_size, batch_size = 16, config.batch_size
        config.tf32 = precision == "tf32"
        # It runs once, so that it need not have the fastest kernels, which take long to find.
        checked = Ours(config, data, {"xla_gpu_autotune_level": 0})
        config.batch_size = batch_size
        config.precision = "bfloat16" if precision == "bfloat16" else "float32"
        config.tf32 = precision != "float32"
        ours = Ours(config, data)
    sides, notes = torch_sides(ours, checked, device, precision)
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
        group=f"{name}: {config.method.name}, {networks}, {what} {shape}, {precision}, "
        f"batch {config.batch_size}",
    )


def main(_):
    """Print a table for each row."""
    logging.set_verbosity(logging.WARNING)
    # By default JAX allocates most of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise app.UsageError("JAX has a GPU here and PyTorch has none: install its CUDA build")
    if unknown := set(FLAGS.rows or ()) - ROWS.keys():
        raise app.UsageError(f"--rows has {', '.join(unknown)}, allowed: {', '.join(ROWS)}")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    # Networks of one class share a cache; when it is full, torch.compile falls back to eager mode.
    torch._dynamo.config.recompile_limit = 64
    for name in FLAGS.rows or ROWS:
        if ROWS[name][2] and device == "cpu":
            print(f"{name}: needs a GPU, here is none")
        else:
            for precision in FLAGS.precisions if device == "cuda" else ("float32",):
                compare(name, device, precision)


if __name__ == "__main__":
    app.run(main)
