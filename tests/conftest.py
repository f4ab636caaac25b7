"""Common parts of the tests: golden numbers, a tiny network and group, a compilation cache."""

import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

# Set before jax is imported, and inherited by the commands that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "orc_jax_test_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Programs need not know the lines that they come from, which costs a twentieth of the time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags

from orc_jax import __main__ as program
from orc_jax import config as configs
from orc_jax import data, models
from orc_jax.commands import command_line
from orc_jax.models.layers import Head
from orc_jax.models.network import Network, auxiliary_heads, stage
from orc_jax.models.resnet import ResidualBlock, Stem

# XLA's older code generator compiles twice as fast; later versions may no longer have it. Compiling
# the parts of a program one after the other costs less in all, and there are other tests to run.
FLAGS = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = ""
    for flag in FLAGS:
        more = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}".strip()}
        trial = [sys.executable, "-c", "import jax; jax.devices()"]
        if not subprocess.run(trial, env=os.environ | more, capture_output=True).returncode:
            os.environ.update(more)

ROOT = Path(__file__).parent.parent
GOLDEN = Path(os.environ.get("ORC_GOLDEN_DIR", Path(__file__).parent / "golden"))


def golden(name: str):
    """The golden numbers of a file, e.g. "methods"."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_tensors(shapes: dict) -> dict[str, np.ndarray]:
    """The PyTorch tensors whose logits the golden files hold."""
    return {name: _golden_tensor(name, shape) for name, shape in shapes.items()}


def _golden_tensor(name, shape):
    r = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("running_mean", "bias")):
        value = 0.1 * r.standard_normal(shape)
    elif name.endswith("running_var"):
        value = r.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        value = r.standard_normal(shape) * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    elif len(shape) == 2:
        value = 0.05 * r.standard_normal(shape)
    else:
        value = r.uniform(0.2, 0.6, shape)
    return value.astype(np.float32)


def golden_images(case: dict, rows: int) -> np.ndarray:
    """The images of a network's golden case, [rows, S, S, 3]."""
    size = case["image_size"]
    images = np.random.default_rng(0).standard_normal((rows, 3, size, size)).astype(np.float32)
    return images.transpose(0, 2, 3, 1)


def tiny(width: int, num_classes: int, norm) -> Network:
    """A residual network that compiles in a second."""
    stages = [stage(ResidualBlock, width, 2, 1, norm)]
    return Network(Stem(width, norm), stages, Head(num_classes))


def tiny_deep(width: int, num_classes: int, norm) -> Network:
    """One of three stages, with auxiliary heads, that runs fast too."""
    stages = [stage(ResidualBlock, width, stride, 1, norm) for stride in (2, 2, 1)]
    head = Head(num_classes)
    return Network(Stem(width, norm), stages, head, auxiliary_heads(stages, head))


class Pixels(nn.Module):
    """A dense layer on every pixel, norm and activation; compiles faster than convolutions."""

    features: int
    stride: int
    norm: Callable

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.features)(x[:, :: self.stride, :: self.stride])
        return nn.relu(self.norm(use_running_average=not train)(x))


def pixels(width: int, strides: tuple[int, ...], num_classes: int, norm) -> Network:
    """A network without a convolution, with auxiliary heads if it has three stages."""
    stages = [stage(Pixels, width, stride, 1, norm) for stride in strides]
    head = Head(num_classes)
    auxiliary = auxiliary_heads(stages, head) if len(stages) > 2 else ()
    return Network(stage(Pixels, width, 1, 1, norm), stages, head, auxiliary)


TINY = {
    name: models.Entry(build, torch_names=())
    for name, build in {
        "tiny": partial(tiny, 4),
        "tiny_wide": partial(tiny, 8),
        "tiny_digits": partial(tiny, 32),
        "tiny_digits_deep": partial(tiny_deep, 16),
        "pixels": partial(pixels, 6, (2, 2)),
        "pixels_wide": partial(pixels, 10, (2, 2)),
        "pixels_deep": partial(pixels, 6, (1, 2, 2)),
    }.items()
}


# The files that take longest, which run first so that the processes end at about the same time.
LONGEST = (
    "test_models",
    "test_commands",
    "test_meshes",
    "test_digits",
    "test_distributed",
    "test_step",
    "test_train",
    "test_groups",
    "test_export",
    "test_experiments",
    "test_versus_torch",
)


def pytest_collection_modifyitems(items):
    """Orders the files by `LONGEST`, then as they were."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


# Tracing makes millions of objects that live on: looking for garbage often takes a tenth of it.
gc.set_threshold(100_000, 20, 20)

# Most programs run for a few steps only, and optimising them would take half of the time.
UNOPTIMISED = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != "0"
jax.config.update("jax_disable_most_optimizations", UNOPTIMISED)


@contextmanager
def optimised():
    """Compiles as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", UNOPTIMISED)


@pytest.fixture(autouse=True)
def optimised_where_marked(request):
    """`pytest.mark.optimised`: for tests that train long or look at the compiled program."""
    if request.node.get_closest_marker("optimised"):
        with optimised():
            yield
    else:
        yield


@pytest.fixture(autouse=True, scope="session")
def tiny_networks():
    """Makes the networks of `TINY` known."""
    models.NETWORKS.update(TINY)


def tiny_config(
    networks=("pixels_wide", "pixels", "pixels", "pixels"), method_name="orc", **method
):
    """A config of a tiny group on digits-like images; keywords go to config.method."""
    config = configs.default_config(method_name)
    config.epochs = 2
    config.batch_size = 16
    config.eval_batch_size = 16
    config.data.pad = 1
    config.data.flip = False
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 0.05
    if "pretrained" in config.method:
        config.method.pretrained = False  # tests/test_pretraining.py has the others
    config.method.update(method)
    config.peers = tuple(configs.peer(network) for network in networks)
    return config


def load_data(config):
    """The data set of a config, kept in its `data.cache`; what is said goes to standard output."""
    return data.load(config, data.Host(folder=Path(config.data.cache), say=print))


def tiny_data(seed=0, train=50, test=21, num_classes=5):
    """Random images of classes that a network can tell apart by their brightness."""
    rng = np.random.default_rng(seed)

    def split(n):
        labels = rng.permutation(np.arange(n) % num_classes)
        noise = rng.integers(0, 60, (n, 8, 8, 1))
        return (noise + 40 * labels[:, None, None, None]).astype(np.uint8), labels

    return (*split(train), *split(test))


def readme_code(containing):
    """The README's block of Python that contains this."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if containing in block]
    return code


# Environment of commands whose programs run too briefly to be worth optimising.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


# Of what a test waits for and that never comes; no test measures time.
TOO_LONG = 3600
# Before a command's module: the command then knows the networks of `TINY`.
WITH_TINY = "tests/tiny_command.py"


def run_command(*args: str, devices: int = 1, check: bool = True, **kwargs):
    """Runs `python ARGS` in the repository's root; the output is text."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags} | kwargs.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        **kwargs,
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


@contextmanager
def flags_of_its_own():
    """No flags but absl's own: what is defined within is forgotten afterwards."""
    # The benchmarks, which some tests import, have flags of the same names as the commands.
    modules = flags.FLAGS.flags_by_module_dict()
    benchmarks = [flag for name, own in modules.items() if "benchmarks" in name for flag in own]
    flags.FLAGS.remove_flag_values(flag.name for flag in benchmarks)
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
        for flag in benchmarks:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module("benchmarks", flag)


def run_here(*args: str) -> SimpleNamespace:
    """Runs `python -m orc_jax ARGS` as `run_command` does, but in this process: for
    commands that end before they compute anything."""
    argv, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["orc_jax", *args]
    at_once, command_line.end_commands_at_once = command_line.end_commands_at_once, lambda: None
    status = 0
    try:
        with flags_of_its_own(), redirect_stdout(out), redirect_stderr(err):
            program.main()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = argv
        command_line.end_commands_at_once = at_once
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def assert_trees_equal(one, other):
    """Bit for bit."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other
    )
