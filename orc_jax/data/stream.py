"""Images that do not fit into memory, read ahead of the step by threads or processes (Grain).

The order depends on (seed, epoch) alone, and every random crop on (seed, epoch, image) alone. A
resumed run can therefore continue with the next image from the number of its step alone.
"""

import collections
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image

from orc_jax.data import decode, faults
from orc_jax.errors import UserError

NO_LABEL = -1  # label of the rows that fill up the last batch of an evaluation
ORDER, CROP = range(2)  # purposes of random numbers, part of their seeds
ALL = slice(None)
AHEAD = 4  # least number of batches that are read before the step asks for them

# Images that are passed over are reported on standard error by a handler of this module, because
# Grain's worker processes have no other handlers and cannot call back.
log = logging.getLogger(__name__)
log.addHandler(logging.lastResort or logging.StreamHandler())
log.propagate = False


class OnDisk(NamedTuple):
    """A split of encoded images, with their normalisation as in `batches.OnDevice`.

    Attributes:
      files: the images, `folder.Files` or `tfds.Records`.
      mean: mean of pixel/255 in the training images, [channels].
      std: standard deviation of pixel/255 in the training images, [channels].
      data: `config.data`.
      passed_over: "training": how often another image took the place of a damaged one, in the rows
        that this process reads; for the caller to reset.
    """

    files: Any
    mean: jax.Array
    std: jax.Array
    data: object
    passed_over: collections.Counter

    @property
    def labels(self) -> np.ndarray:
        """[N] int32 class indices."""
        return self.files.labels


class _TrainingBatches:
    """A Grain data source of the batches of all epochs."""

    def __init__(self, split: OnDisk, seed: int, batch_size: int, num_epochs: int, rows: slice):
        self._files, self._data, self._rows = split.files, split.data, rows
        self._seed, self._batch_size = seed, batch_size
        self._steps = len(split.labels) // batch_size
        self._num_epochs = num_epochs

    def __len__(self):
        return self._num_epochs * self._steps

    def __getitem__(self, i):
        epoch, step = divmod(i, self._steps)
        first = step * self._batch_size
        positions = epoch_order(self._seed, epoch, len(self._files.labels))
        positions = positions[first : first + self._batch_size]
        rows = range(self._batch_size)[self._rows]
        read = [self._image(positions, row, epoch) for row in rows]
        images, labels, passed_over = zip(*read, strict=True)
        return np.stack(images), np.array(labels), sum(passed_over)

    def _image(self, positions, row, epoch):
        """Read the image and label of a row, or of the next row whose image is not damaged.

        The third result is whether it is another row's.
        """
        for passed_over, position in enumerate(np.roll(positions, -row).tolist()):
            seed = self._data.resized_crop and (CROP, self._seed, epoch, position)
            image = _read(self._files, self._data, position, seed)
            if image is not None:
                return image, self._files.labels[position], passed_over > 0
        name = self._files.name(int(positions[row]))
        raise UserError(f"{name} and all other images of its batch are damaged")


@lru_cache(2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Draw an epoch's permutation of the training images.

    Args:
      seed: seed of the run.
      epoch: index of the epoch.
      num_images: number of training images N.

    Returns:
      [N].
    """
    return np.random.default_rng((ORDER, seed, epoch)).permutation(num_images)


class _EvaluationBatches:
    """A Grain data source of the batches of a split in its order; the last one is filled up."""

    def __init__(self, split: OnDisk, batch_size: int, rows: slice):
        self._files, self._data, self._rows = split.files, split.data, rows
        self._batch_size = batch_size

    def __len__(self):
        return -(-len(self._files.labels) // self._batch_size)

    def __getitem__(self, i):
        positions = np.arange(i * self._batch_size, (i + 1) * self._batch_size)[self._rows]
        images = np.zeros((len(positions), *self._files.image_shape), np.uint8)
        labels = np.full(len(positions), NO_LABEL, np.int32)
        for row, position in enumerate(positions.tolist()):
            if position >= len(self._files.labels):
                break
            image = _read(self._files, self._data, position, resize=self._data.eval_resize)
            if image is not None:
                images[row], labels[row] = image, self._files.labels[position]
        return images, labels


def training(
    split: OnDisk, seed: int, batch_size: int, num_epochs: int, step: int, rows: slice = ALL
) -> Iterator:
    """Read the batches of a run's training.

    Args:
      split: the training images.
      seed: seed of the run.
      batch_size: B.
      num_epochs: number of epochs of the run.
      step: number of the step to start from.
      rows: rows of every batch that this process needs; only these are read.

    Returns:
      Iterator over (images [B, H, W, channels] uint8, labels [B]) of every step.

    Raises:
      UserError: when a batch is read, if an image is damaged and `on_error` is "stop", or all
        images of a batch are damaged.
    """
    source = _TrainingBatches(split, seed, batch_size, num_epochs, rows)
    for images, labels, passed_over in _read_ahead(source, split.data, step):
        split.passed_over["training"] += int(passed_over)
        yield images, labels


def evaluation(split: OnDisk, batch_size: int, rows: slice = ALL) -> Iterator:
    """Read the batches of a split in its order.

    Args:
      split: a split.
      batch_size: B.
      rows: rows of every batch that this process needs; only these are read.

    Returns:
      Iterator over (images [B, H, W, channels] uint8, labels [B]) of every batch. The labels are
      `NO_LABEL` in rows that do not count: those of damaged images, and those that fill up the
      last batch.

    Raises:
      UserError: when a batch is read, if an image is damaged and `on_error` is "stop".
    """
    return _read_ahead(_EvaluationBatches(split, batch_size, rows), split.data)


def _read_ahead(source, data, first: int = 0):
    import grain  # the import takes seconds, and most runs do not need it

    batches = grain.MapDataset.source(source)[first:]
    if not data.workers:
        # A thread reads a whole batch: more of them would need much memory.
        threads = min(16, max(AHEAD, os.cpu_count() or 1))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        return iter(batches.to_iter_dataset(options))
    # Grain reads absl flags of its own, which nothing has parsed when called from Python.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Every process reads one batch at a time; Grain takes batches from the processes in turn.
    in_turn = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=data.workers)
    _start_tracker()
    return _of_workers(iter(in_turn.mp_prefetch(options, _init_worker)))


def _of_workers(batches: Iterator) -> Iterator:
    """Yield what worker processes read.

    Raises:
      UserError: a worker process has died.
    """
    while True:
        try:
            with _without_interrupts():  # Grain starts the workers when the first batch is read
                batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            # Grain's message ends with the exit code, which says little of the cause.
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "a process that reads images has died, perhaps because the memory is full "
                "(--config.data.workers sets their number)"
            ) from error
        yield batch


def _start_tracker() -> None:
    """Start the process with which Python frees the shared memory of processes that are killed.

    It warns of the memory that it frees, which is no news where a process was killed.
    """
    name, ours = "PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"
    before = os.environ.get(name)
    os.environ[name] = f"{before},{ours}" if before else ours
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from the threads and processes that are started within.

    A terminal sends it to all processes of a command, but the main one decides what it means.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(index: int, count: int) -> None:
    """Let a worker process end with the one that started it, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _read(files, data, i: int, crop_seed=None, resize: int = 0) -> np.ndarray | None:
    """Read the i-th image; return None if it is damaged and damaged images are passed over."""
    try:
        if crop_seed:
            with faults.open_image(files.file(i)) as image:
                rng = np.random.default_rng(crop_seed)
                return random_resized_crop(image, files.size, rng, files.channels, files.bits)
        return decode.decode(files.file(i), files.size, resize, files.channels, files.bits)
    except faults.FAULTS as error:
        why = faults.reason(files.name(i), error)
        message = f"{files.name(i)} cannot be decoded: {why}"
        if data.on_error == "stop":
            raise UserError(f"{message} (--config.data.on_error=skip passes over it)") from error
        log.warning("passed over: %s", message)
        return None


def sample(files, data, count: int = 512) -> np.ndarray:
    """Read a random sample of images, from which their mean and deviation are estimated.

    The sample is the same in every run. Damaged images are left out.

    Args:
      files: the images, `folder.Files` or `tfds.Records`.
      data: `config.data`.
      count: maximum number of images.

    Returns:
      [n, H, W, channels] uint8.

    Raises:
      UserError: an image is damaged and `data.on_error` is "stop".
    """
    positions = np.random.default_rng(0).permutation(len(files.labels))[:count]
    images = [_read(files, data, i) for i in np.sort(positions).tolist()]
    return np.stack([image for image in images if image is not None])


def random_resized_crop(
    image: Image.Image, size: int, rng, channels: int = 3, bits: int = 16
) -> np.ndarray:
    """Take a random part of an image, and scale it to size × size.

    The part covers 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3 (Szegedy et al. 2015,
    arXiv 1409.4842). If ten attempts draw no part that fits into the image, the part is the
    largest of such a ratio, at a random position.

    Args:
      image: the image; it must not be loaded yet, so that JPEG can skip resolution.
      size: height and width of the result, in pixels.
      rng: NumPy random generator.
      channels: 3, or 1 for grey.
      bits: bits that the levels of a 16-bit image have.

    Returns:
      uint8 [size, size, channels].
    """
    turned = -1 if decode.lies_on_its_side(image) else 1
    width, height = image.size[::turned]
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = min(width, round(height * 4 / 3))
        h = min(height, round(width * 4 / 3))
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    # JPEG need not decode resolution that the result does not have.
    image.draft("RGB", (-(-size * width // w), -(-size * height // h))[::turned])
    image = decode.rgb(image, bits)
    x, y = image.size[0] / width, image.size[1] / height
    box = (left * x, top * y, (left + w) * x, (top + h) * y)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return decode.as_array(image, channels)
