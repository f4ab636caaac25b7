"""ONNX programs in float16 and int8, with the accuracy that is left."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from orc_jax.data import Images, stream
from orc_jax.errors import UserError
from orc_jax.runtime import display
from orc_jax.trained import formats
from orc_jax.trained.networks import TrainedNetworks

FILES = ("model.onnx", "model.float16.onnx", "model.int8.onnx")
CALIBRATION = 512  # training images
BATCH_SIZE = 64


def write(trained: TrainedNetworks, directory: Path, sample, test) -> dict[str, float]:
    """Write a network in float16 and int8, and evaluate its ONNX programs on the test images.

    int8 is static quantisation by onnxruntime: weights per channel and activations per tensor, with
    the least and the largest value of each activation on the sample.

    Args:
      trained: the network, or an ensemble; `formats.write` has written its `model.onnx`.
      directory: of the export.
      sample: training images to calibrate by, uint8 [N, H, W, channels].
      test: the test images, as a `stream.OnDisk` if they are streamed, or else `Images`.

    Returns:
      For each ONNX file, its top-1 accuracy on the test images in percent.

    Raises:
      UserError: the network has no ONNX program, or cannot be quantised.
    """
    try:
        (directory / FILES[1]).write_bytes(formats.onnx(trained, np.float16))
        _quantise(directory / FILES[0], directory / FILES[2], sample)
        return {
            name: _top1(formats.read_onnx(trained, (directory / name).read_bytes()), test, name)
            for name in FILES
        }
    except formats.Unavailable as error:
        raise UserError(f"the network cannot be quantised: {error}") from error


def _quantise(program: Path, out: Path, sample) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            firsts = range(0, len(sample), BATCH_SIZE)
            self._batches = ({"images": sample[first : first + BATCH_SIZE]} for first in firsts)

        def get_next(self):
            return next(self._batches, None)

    # It recommends a preparation that the programs of `onnx_program` do not need.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantization.quantize_static(program, out, Reader(), per_channel=True)
    except Exception as error:
        # onnxruntime's exceptions are of any class.
        raise formats.Unavailable(formats.short(error)) from error
    finally:
        root.setLevel(level)


def _top1(run: Callable, test, name: str) -> float:
    right = total = 0
    with display.progress(f"evaluating {name}", len(test.labels)) as advance:
        for images, labels in _batches(test):
            counted = labels >= 0
            right += int((np.argmax(run(images), axis=1) == labels)[counted].sum())
            total += int(counted.sum())
            for _ in range(len(images)):
                advance()
    return 100 * right / total


def _batches(test) -> Iterator:
    if isinstance(test, Images):
        for first in range(0, len(test.labels), BATCH_SIZE):
            rows = slice(first, first + BATCH_SIZE)
            yield test.images[rows], test.labels[rows]
    else:
        yield from stream.evaluation(test, BATCH_SIZE)
