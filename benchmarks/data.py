"""`python -m benchmarks.data` measures what it costs to provide the images of a step.

A training step that is fed as in the training loop is compared with the same step on arguments
that are already on the device, for images in memory and for streamed images. The loader of streamed
images alone is compared with a PyTorch DataLoader (`pip install -e '.[torch]'`) that does the same
to the same files with as many workers.
"""

import itertools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from benchmarks.common import FLAGS, quartiles, settings, show
from orc_jax.data import stream
from orc_jax.loop import training_batches
from orc_jax.prepare import prepare
from orc_jax.state import init_state
from orc_jax.step import compile_steps

flags.DEFINE_integer("images", 768, "Number of JPEG files of 500×375 pixels.")
flags.DEFINE_integer("workers", 2, "Processes that decode; 0: threads of this process.")


def write_images(root: Path) -> None:
    """Write JPEG files of two classes with smooth noise, which compresses as photographs do."""
    rng = np.random.default_rng(0)
    for i in range(FLAGS.images):
        path = root / ("val" if i < 16 else "train") / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def config_of(root: Path, memory: float):
    """Return a config for the files, which streams them if they may take no memory."""
    config = settings("ind", FLAGS.peers)
    config.data.update(name="folder", dir=str(root), size=FLAGS.size, memory=memory)
    config.data.update(workers=FLAGS.workers, cache=str(root.parent / "cache"), pad=0)
    config.data.resized_crop = memory == 0
    config.epochs = 1000
    return config


def steps(config):
    """Return the seconds per step of steps that are fed, and of steps on present arguments."""
    setup = prepare(config)
    state = init_state(*setup.state_args(), {})
    train_step, *_ = compile_steps(setup.config, setup.group, setup.method, streamed=setup.streamed)
    following = training_batches(setup, 0)
    present = next(following)
    state = train_step(state, *present)
    jax.block_until_ready(state)
    fed, bare = [], []
    # Several steps at a time, as in the loop, where the next images are read during a step.
    for _ in range(FLAGS.rounds):
        for times, batches in ((fed, following), (bare, itertools.repeat(present))):
            began = time.perf_counter()
            for _ in range(8):
                state = train_step(state, *next(batches))
            jax.block_until_ready(state)
            times.append((time.perf_counter() - began) / 8)
    return np.array(fed), np.array(bare)


def our_rate(config) -> float:
    """Return the images per second of our loader alone, after its start."""
    setup = prepare(config)
    loader = stream.training(setup.train_split, 0, FLAGS.batch, config.epochs, 0)
    return _rate(lambda: next(loader)[0])


def torch_rate(root: Path) -> float:
    """Return the images per second of a DataLoader that crops, scales and batches the files."""
    from torch.utils.data import DataLoader, Dataset

    files = sorted((root / "train").rglob("*.jpg"))

    class Files(Dataset):
        def __len__(self):
            return 1000 * len(files)

        def __getitem__(self, i):
            with Image.open(files[i % len(files)]) as image:
                # As torchvision does it: decode the whole image, then crop and scale.
                image, rng = image.convert("RGB"), np.random.default_rng(i)
            return stream.random_resized_crop(image, FLAGS.size, rng), i % 2

    loader = iter(DataLoader(Files(), FLAGS.batch, shuffle=True, num_workers=FLAGS.workers))
    return _rate(lambda: next(loader)[0])


def _rate(load, batches=8):
    """Return the images per second of a function that loads a batch."""
    for _ in range(4):
        load()
    began = time.perf_counter()
    for _ in range(batches):
        load()
    return batches * FLAGS.batch / (time.perf_counter() - began)


def main(_):
    """Print the table."""
    logging.set_verbosity(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        write_images(root)
        for name, memory in (("in memory", 0.5), ("streamed", 0.0)):
            fed, bare = steps(config_of(root, memory))
            ms = [f"{1000 * np.median(times):.1f}" for times in (fed, bare)]
            rows.append((name, *ms, f"{np.median(bare / fed):.3f}", quartiles(bare / fed)))
        rates = np.array(
            [(our_rate(config_of(root, 0.0)), torch_rate(root)) for _ in range(FLAGS.rounds)]
        )
    ratio = rates[:, 0] / rates[:, 1]
    show(
        ("images", "ms a step", "bare step", "throughput ÷ bare", "quartiles"),
        rows,
        f"loader alone, {FLAGS.workers} workers: {np.median(rates[:, 0]):.0f} images/s, PyTorch's "
        f"DataLoader {np.median(rates[:, 1]):.0f}: ratio {np.median(ratio):.2f} "
        f"({quartiles(ratio)})",
    )


if __name__ == "__main__":
    app.run(main)
