"""Images that do not fit the memory: read ahead of the step by threads or processes (Grain).

The order is a function of (seed, epoch) and every random crop of (seed, epoch, image), so that
the step is all that a resumed run needs to go on with the very next image.
"""

import logging
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image

from orc_jax.data import decode, faults
from orc_jax.errors import UserError

NO_LABEL = -1  # of the rows that fill up the last batch of an evaluation
ORDER, CROP = range(2)  # what random numbers are for
ALL = slice(None)
AHEAD = 4  # batches that are ready before the step asks for them

# Says what is passed over on standard error, as it is, in the processes that read too: these
# cannot call back, and other handlers are not set up in them.
log = logging.getLogger(__name__)
log.addHandler(logging.lastResort)
log.propagate = False


class OnDisk(NamedTuple):
    """A split with what normalises it, as `batches.OnDevice`, whose images are still encoded.

    Attributes:
      files: the images, `folder.Files` or `tfds.Records`.
      mean, std: [channels], of pixel/255.
      data: `config.data`.
    """

    files: Any
    mean: jax.Array
    std: jax.Array
    data: object

    @property
    def labels(self) -> np.ndarray:
        return self.files.labels


class _Batches:
    """Grain's source of a training's batches: batch i of all epochs, by its number."""

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
        images, labels = zip(*(self._image(positions, row, epoch) for row in rows), strict=True)
        return np.stack(images), np.array(labels)

    def _image(self, positions, row, epoch):
        """The image of a row and its label; if it is damaged, the next whole one of the batch."""
        for at in np.roll(positions, -row).tolist():
            seed = self._data.resized_crop and (CROP, self._seed, epoch, at)
            image = _read(self._files, self._data, at, seed)
            if image is not None:
                return image, self._files.labels[at]
        name = self._files.name(int(positions[row]))
        raise UserError(f"{name} and its whole batch are damaged")


@lru_cache(2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The epoch's permutation of the training images, a function of (seed, epoch)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(num_images)


class _InOrder:
    """Grain's source of an evaluation's batches; the last one is filled up."""

    def __init__(self, split: OnDisk, batch_size: int, rows: slice):
        self._files, self._data, self._rows = split.files, split.data, rows
        self._batch_size = batch_size

    def __len__(self):
        return -(-len(self._files.labels) // self._batch_size)

    def __getitem__(self, i):
        positions = np.arange(i * self._batch_size, (i + 1) * self._batch_size)[self._rows]
        images = np.zeros((len(positions), *self._files.image_shape), np.uint8)
        labels = np.full(len(positions), NO_LABEL, np.int32)
        for row, at in enumerate(positions.tolist()):
            if at >= len(self._files.labels):
                break
            image = _read(self._files, self._data, at, resize=self._data.eval_resize)
            if image is not None:
                images[row], labels[row] = image, self._files.labels[at]
        return images, labels


def training(
    split: OnDisk, seed: int, batch_size: int, num_epochs: int, step: int, rows: slice = ALL
) -> Iterator:
    """(images [B, H, W, channels] uint8, labels [B]) of every step from this one on.

    Args:
      rows: of the batch that this process needs; the others it does not read.
    """
    return _ahead(_Batches(split, seed, batch_size, num_epochs, rows), split.data, step)


def evaluation(split: OnDisk, batch_size: int, rows: slice = ALL) -> Iterator:
    """The same of a split in order; rows that do not count have `NO_LABEL`."""
    return _ahead(_InOrder(split, batch_size, rows), split.data)


def _ahead(source, data, first: int = 0):
    import grain  # takes seconds, and most runs need none of it

    batches = grain.MapDataset.source(source)[first:]
    if not data.workers:
        options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        return iter(batches.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():  # called from Python: Grain has flags of its own
        flags.FLAGS.mark_as_parsed()
    # One batch at a time in every process; Grain hands them out in turn.
    in_turn = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    return iter(in_turn.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers)))


def _read(files, data, at: int, crop_seed=None, resize: int = 0) -> np.ndarray | None:
    """One image; None if it cannot be decoded and such images are to be left out."""
    try:
        if crop_seed:
            with Image.open(files.file(at)) as image:
                rng = np.random.default_rng(crop_seed)
                return random_resized_crop(image, files.size, rng, files.channels)
        return decode.decode(files.file(at), files.size, resize, files.channels)
    except faults.FAULTS as error:
        why = faults.reason(files.name(at), error)
        fault = f"{files.name(at)} cannot be decoded: {why}"
        if data.on_error == "stop":
            raise UserError(f"{fault} (--config.data.on_error=skip passes over it)") from error
        log.warning("passed over: %s", fault)
        return None


def sample(files, data, count: int = 512) -> np.ndarray:
    """Some images [n, H, W, channels], the same ones every time: for their mean and deviation."""
    chosen = np.random.default_rng(0).permutation(len(files.labels))[:count]
    images = [_read(files, data, at) for at in np.sort(chosen).tolist()]
    return np.stack([image for image in images if image is not None])


def random_resized_crop(image: Image.Image, size: int, rng, channels: int = 3) -> np.ndarray:
    """A random part of an image, 8 to 100 % of its area, ratio 3/4 to 4/3, scaled to size × size.

    As torchvision's RandomResizedCrop (Szegedy et al. 2015): ten attempts, then the centre.
    """
    width, height = image.size
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
    # JPEG skips resolution that the crop does not need.
    image.draft("RGB", (-(-size * width // w), -(-size * height // h)))
    factor = image.size[0] / width, image.size[1] / height
    box = (left * factor[0], top * factor[1], (left + w) * factor[0], (top + h) * factor[1])
    image = decode.rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return decode.as_array(image, channels)
