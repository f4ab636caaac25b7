"""Images that do not fit the memory: read ahead of the step by threads or processes (Grain).

The order is a function of (seed, epoch) and every random crop of (seed, epoch, image), so that
the step is all that a resumed run needs to go on with the very next image.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from orc_jax.data import decode
from orc_jax.data.folder import Files
from orc_jax.errors import UserError

NO_LABEL = -1  # of the rows that fill up the last batch of an evaluation
ORDER, CROP = range(2)  # what random numbers are for
AHEAD = 4  # batches that are ready before the step asks for them


class OnDisk(NamedTuple):
    """A split with what normalises it, as `batches.OnDevice`, whose images are still files.

    Attributes:
      files: the images.
      mean, std: [channels], of pixel/255.
      data: `config.data`.
    """

    files: Files
    mean: np.ndarray
    std: np.ndarray
    data: object

    @property
    def labels(self) -> np.ndarray:
        return self.files.labels


class _Batches:
    """Grain's source of a training's batches: batch i of all epochs, by its number."""

    def __init__(self, files: Files, data, seed: int, batch_size: int, num_epochs: int):
        self._files, self._seed, self._batch_size = files, seed, batch_size
        self._size, self._crop = files.size, data.resized_crop
        self._steps = len(files.labels) // batch_size
        self._num_epochs = num_epochs

    def __len__(self):
        return self._num_epochs * self._steps

    def __getitem__(self, i):
        epoch, step = divmod(i, self._steps)
        first = step * self._batch_size
        positions = epoch_order(self._seed, epoch, len(self._files.labels))
        positions = positions[first : first + self._batch_size]
        images = [
            _read(self._files, at, self._size, self._crop and (CROP, self._seed, epoch, int(at)))
            for at in positions
        ]
        return np.stack(images), self._files.labels[positions]


@lru_cache(2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The epoch's permutation of the training images, a function of (seed, epoch)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(num_images)


class _InOrder:
    """Grain's source of an evaluation's batches; the last one is filled up."""

    def __init__(self, files: Files, data, batch_size: int):
        self._files, self._batch_size = files, batch_size
        self._size, self._resize = files.size, data.eval_resize

    def __len__(self):
        return -(-len(self._files.labels) // self._batch_size)

    def __getitem__(self, i):
        positions = np.arange(i * self._batch_size, (i + 1) * self._batch_size)
        inside = positions < len(self._files.labels)
        positions = positions.clip(max=len(self._files.labels) - 1)
        images = np.zeros((self._batch_size, self._size, self._size, 3), np.uint8)
        for row in np.flatnonzero(inside):
            images[row] = _read(self._files, positions[row], self._size, resize=self._resize)
        return images, np.where(inside, self._files.labels[positions], NO_LABEL)


def training(split: OnDisk, seed: int, batch_size: int, num_epochs: int, step: int) -> Iterator:
    """(images [B, size, size, 3] uint8, labels [B]) of every step from this one on."""
    return _ahead(_Batches(split.files, split.data, seed, batch_size, num_epochs), split.data, step)


def evaluation(split: OnDisk, batch_size: int) -> Iterator:
    """The same of a split in order; rows of the last batch that do not count have `NO_LABEL`."""
    return _ahead(_InOrder(split.files, split.data, batch_size), split.data)


def _ahead(source, data, first: int = 0):
    import grain  # takes seconds, and most runs need none of it

    batches = grain.MapDataset.source(source)[first:]
    if not data.workers:
        options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        return iter(batches.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():  # called from Python: Grain has flags of its own
        flags.FLAGS.mark_as_parsed()
    # One batch at a time in every process; Grain hands them out in turn.
    one = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    return iter(one.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers)))


def _read(files: Files, at: int, size: int, crop_seed=None, resize: int = 0) -> np.ndarray:
    path = files.root / files.paths[at]
    try:
        if crop_seed:
            with Image.open(path) as image:
                return random_resized_crop(image, size, np.random.default_rng(crop_seed))
        return decode.decode(path, size, resize)
    except decode.FAULTS as error:
        raise UserError(f"{path} cannot be decoded: {error}") from error


def sample(files: Files, count: int = 512) -> np.ndarray:
    """Some images [n, size, size, 3], the same ones every time: for their mean and deviation."""
    chosen = np.random.default_rng(0).permutation(len(files.labels))[:count]
    return np.stack([_read(files, at, files.size) for at in np.sort(chosen)])


def random_resized_crop(image: Image.Image, size: int, rng) -> np.ndarray:
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
    return np.asarray(image)
