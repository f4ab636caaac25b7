"""`python -m benchmarks.gpu_step` times the forms that a step can have on a GPU, and looks into it.

Every variant changes one thing in the training step of `--method` with `--peers` networks:

  tf32         activations in float32, convolutions and products in TF32 (JAX's default on a GPU);
  float32      the same with full float32 convolutions and products;
  bfloat16     activations in bfloat16;
  grouped      bfloat16, one grouped convolution for the whole stack instead of one for each peer;
  flax_norm    bfloat16, Flax's batch norm instead of ours;
  loop         bfloat16, ORC's λ by the sampler of the beta distribution, which is a loop;
  dispatch     bfloat16, four steps in one program;
  graph        bfloat16, convolutions too in the CUDA graphs that XLA makes;
  concurrent   the same, and what does not depend on each other may run at the same time;
  ind          bfloat16, without a method: the same networks learn from their labels alone;
  one          bfloat16, one network alone, without a method.

The programs are compiled side by side, which can take minutes because XLA tries its kernels. Then
they take turns, `--steps` steps a round, of which only the last is waited for. With
`--trace=FOLDER` a table of the kernels of the bfloat16 step follows: how often each kind runs in a
step, how long, and how much of the step the GPU is idle.
"""

import os
import re
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags, logging
from jax import lax

from benchmarks.common import (
    FLAGS,
    alternate,
    peak_bytes,
    plain_convolutions,
    quartiles,
    random_images,
    settings,
    show,
)
from orc_jax import models
from orc_jax.data import batches
from orc_jax.prepare import prepare
from orc_jax.state import init_state, streams
from orc_jax.step import compile_steps

FLAGS.set_default("network", "resnet20")
FLAGS.set_default("size", 32)
FLAGS.set_default("channels", 3)
FLAGS.set_default("batch", 128)
FLAGS.set_default("rounds", 5)
flags.DEFINE_string("method", "orc", "Method of the group.")
flags.DEFINE_integer("steps", 20, "Steps per round.")
flags.DEFINE_integer("compile_limit", 600, "Seconds after which programs are left out.")
flags.DEFINE_list("only", None, "Some of the variants; default: all.")
flags.DEFINE_string("trace", None, "Folder for a trace and the program of the bfloat16 step.")
DISPATCH = 4  # steps a dispatch
GRAPH = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,COLLECTIVES,"
    "CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION,CONVOLUTION"
}
# Variant → options of XLA's compiler.
OPTIONS = {
    "graph": GRAPH,
    "concurrent": GRAPH | {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"},
}
VARIANTS = (
    "tf32",
    "float32",
    "bfloat16",
    "grouped",
    "flax_norm",
    "loop",
    "dispatch",
    *OPTIONS,
    "ind",
    "one",
)


class Variant:
    """A lowered step with its arguments.

    Args:
      name: one of `VARIANTS`.
    """

    def __init__(self, name: str):
        self.name = name
        alone = name == "one"
        config = settings("ind" if name in ("ind", "one") else FLAGS.method, FLAGS.peers)
        config.peers = config.peers[:1] if alone else config.peers
        config.precision = "float32" if name in ("tf32", "float32") else "bfloat16"
        config.tf32 = name != "float32"
        if name == "loop":
            config.method.mixup_alpha = 0.999
        with ExitStack() as stack:
            if name == "grouped":
                stack.enter_context(plain_convolutions())
            if name == "flax_norm":
                stack.enter_context(flax_norm())
            setup = prepare(config, random_images())
            self.state = init_state(*setup.state_args(), {})
            step, *_ = compile_steps(config, setup.group, setup.method)
            order = batches.epoch_order(
                streams(0)[1], 0, len(setup.train_split.labels), config.batch_size
            )
            self.args = (setup.train_split, setup.on_mesh(jax.device_get(order)))
            self.steps = DISPATCH if name == "dispatch" else 1
            if self.steps > 1:
                one = step.__wrapped__  # JAX allows compiler options in the outermost jit alone

                def several(state, *args):
                    return lax.fori_loop(0, DISPATCH, lambda i, s: one(s, *args), state)

                step = jax.jit(several, donate_argnums=0)
            began = time.perf_counter()
            self.lowered = step.lower(self.state, *self.args)
            self.lowering = time.perf_counter() - began

    def compile(self) -> None:
        """Compile the step, which takes a minute on a GPU."""
        began = time.perf_counter()
        self.program = self.lowered.compile(OPTIONS.get(self.name))
        self.compiling = time.perf_counter() - began

    def run(self, steps: int) -> None:
        """Run some steps and wait for the last."""
        for _ in range(steps // self.steps):
            self.state = self.program(self.state, *self.args)
        jax.block_until_ready(self.state)


class flax_norm:
    """Build networks within this context with Flax's batch norm."""

    def __enter__(self):
        self.ours = models.BatchNorm

        def norm(use_running_average, axis_name=None, name=None):
            return nn.BatchNorm(use_running_average, axis_name=axis_name, momentum=0.9, name=name)

        models.BatchNorm = norm

    def __exit__(self, *_):
        models.BatchNorm = self.ours


def kernels(folder: Path, steps: int) -> tuple[list, str]:
    """Return a row for each kind of kernel in a trace, and how long the GPU was busy.

    Args:
      folder: of the trace.
      steps: how many steps it has.
    """
    (path,) = folder.rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    spans = []
    for plane in profile.planes:
        if "/device:GPU" not in plane.name:
            continue
        for line in plane.lines:
            if "Stream" not in line.name:
                continue
            for event in line.events:
                kind = re.sub(r"[._]?\d+", "", event.name)[:60]
                totals[kind][0] += 1
                totals[kind][1] += event.duration_ns
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
    spans.sort()
    busy = end = 0
    for start, stop in spans:
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    wall = (end - spans[0][0]) if spans else 0
    rows = [
        (kind, f"{count / steps:.1f}", f"{ns / steps / 1000:.1f}", f"{ns / max(busy, 1):.3f}")
        for kind, (count, ns) in sorted(totals.items(), key=lambda item: -item[1][1])
    ]
    note = (
        f"{len(spans) / steps:.0f} kernels and copies a step; {busy / steps / 1e6:.3f} ms busy of "
        f"{wall / steps / 1e6:.3f} ms"
    )
    return rows, note


def main(_):
    """Print the tables."""
    logging.set_verbosity(logging.WARNING)
    names = FLAGS.only or VARIANTS
    variants = {name: Variant(name) for name in names}
    began = time.perf_counter()
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    compiled = {name: pool.submit(variant.compile) for name, variant in variants.items()}
    wait(compiled.values(), timeout=FLAGS.compile_limit)
    together = time.perf_counter() - began
    late = [name for name, result in compiled.items() if not result.done()]
    for name in late:
        del variants[name]
    if not variants:
        raise app.UsageError(f"nothing is compiled after {FLAGS.compile_limit} s")
    for name in variants:
        compiled[name].result()
    seconds = alternate(
        {name: (lambda v=variant: v.run(FLAGS.steps)) for name, variant in variants.items()}
    )
    rows = []
    base = seconds.get("bfloat16", next(iter(seconds.values())))
    for name, times in seconds.items():
        variant = variants[name]
        step = np.median(times) / FLAGS.steps
        images = variant.args[1].shape[1]
        rows.append(
            (
                name,
                f"{1000 * step:.2f}",
                f"{images / step:.0f}",
                f"{np.median(base / times):.3f}",
                quartiles(base / times),
                f"{peak_bytes(variant.program) / 2**20:.0f}",
                f"{variant.lowering:.1f} + {variant.compiling:.1f}",
            )
        )
    show(
        ("variant", "ms a step", "images/s", "× bfloat16", "quartiles", "peak MiB", "compile s"),
        rows,
        f"{FLAGS.steps} steps a round; compiled together in {together:.0f} s; not ready: {late}",
        what=f"{FLAGS.network} by {FLAGS.method}",
    )
    if FLAGS.trace and "bfloat16" in variants:
        folder = Path(FLAGS.trace)
        folder.mkdir(parents=True)
        (folder / "step.hlo.txt").write_text(variants["bfloat16"].program.as_text())
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(str(folder), profiler_options=options):
            variants["bfloat16"].run(5)
        rows, note = kernels(folder, 5)
        columns = ("kernel", "a step", "µs a step", "of the busy time")
        show(columns, rows[:40], note, what=f"{FLAGS.network} by {FLAGS.method}, bfloat16, traced")
    sys.stdout.flush()
    os._exit(0)  # without waiting for programs that are still being compiled


if __name__ == "__main__":
    app.run(main)
