"""Encoded images → uint8 arrays of one size: decoded once and kept, or looked at and left."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import Progress

from orc_jax.data import Dataset, Images, hold_out
from orc_jax.data.folder import Files, Listing
from orc_jax.data.tfds import Records
from orc_jax.errors import UserError
from orc_jax.runtime.caches import cached
from orc_jax.runtime.display import console
from orc_jax.runtime.processes import broadcast_from_main

# Part of every cache file's name: to be raised when the same files give other pixels.
VERSION = 1
# What PIL raises for a file that is truncated or no image.
FAULTS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, MemoryError),
    Image.DecompressionBombError,
)


def load(config, listing: Listing) -> Dataset:
    """The images of a listing, at `config.data.size` (filled in if it is 0).

    Decoded if all of them fit `config.data.memory`; else they stay as they are, and files are
    looked at in passing. Without a second split, `config.data.val_share` of every class is cut
    off the training images, the same ones in every run.

    Raises:
      UserError: an image cannot be decoded (unless `config.data.on_error` is "skip"), the sizes
        differ and none is given, or too few are left.
    """
    data = config.data
    data.size = data.size or listing.train.size or _common_size(listing)
    if cut_off := listing.test is None:
        train, test = hold_out(listing.train, data.val_share, seed=0)
        listing = listing._replace(train=train, test=test)
    count = len(listing.train.labels) + len(listing.test.labels)
    pixels = count * listing.train.channels * data.size**2
    if 0 < data.eval_resize < data.size:
        raise UserError(
            f"data.eval_resize is {data.eval_resize}, allowed: data.size, {data.size}, or more"
        )
    # A run that goes on, or is evaluated, on another machine keeps to what it was.
    fits = not data.streamed
    if data.streamed is None:
        fits = broadcast_from_main(fits_memory(pixels, data.memory))
    take = _decoded if fits else _looked_at
    splits, faults = [], []
    with Progress(transient=True, console=console()) as progress:
        for name, files in (("train", listing.train), ("test", listing.test)):
            task = progress.add_task(f"reading {name} images", total=2 * len(files.labels))
            resize = data.eval_resize if name == "test" else 0
            split, bad = take(files, data, resize, partial(progress.advance, task))
            splits.append(split)
            faults += [f"{files.name(i)} ({why})" for i, why in bad.items()]
    if faults and data.on_error == "stop":
        raise UserError(
            f"{len(faults)} of the images cannot be decoded (--config.data.on_error=skip leaves "
            f"them out): {'; '.join(faults)}"
        )
    if faults:
        shown = f"left out {len(faults)} images that cannot be decoded: {'; '.join(faults)}"
        console().print(shown, highlight=False, soft_wrap=True)
    train, test = splits
    classes = np.union1d(listing.train.labels, listing.test.labels)
    for part in (train, test) if cut_off else (train,):
        if len(missing := np.setdiff1d(classes, part.labels)):
            name = listing.class_names[missing[0]]
            raise UserError(f"the class {name!r} has too few images to train and validate on")
    if not len(test.labels):
        raise UserError(f"{data.dir} has no image to evaluate on")
    return Dataset(train, test, listing.class_names)


def decode(file: str | Path | IO, size: int, resize: int = 0, channels: int = 3) -> np.ndarray:
    """The centre of an encoded image, scaled to size: uint8 [size, size, channels].

    Grey, palette and 16-bit images become RGB; an alpha channel is dropped.

    Args:
      channels: 3, or 1 for grey.
      resize: what the shorter side is scaled to instead, at least size.

    Raises:
      Exception: one of `FAULTS`.
    """
    with Image.open(file) as image:
        # Lets JPEG skip resolution that is not needed.
        image.draft("RGB", (max(size, resize),) * 2)
        return as_array(fit(rgb(image), size, resize), channels)


def come_from_files(image_shape: tuple[int, int, int]) -> bool:
    """Whether `decode` gives images of this shape: squares, grey or RGB."""
    height, width, channels = image_shape
    return height == width and channels in (1, 3)


def as_array(image: Image.Image, channels: int) -> np.ndarray:
    """An image in RGB as uint8 [height, width, channels]."""
    return np.asarray(image) if channels == 3 else np.asarray(image.convert("L"))[..., None]


def fit(image: Image.Image, size: int, resize: int = 0) -> Image.Image:
    """The image with its shorter side scaled to size (or `resize`), of that the centre."""
    if image.size == (size, size) and not resize:
        return image
    factor = (resize or size) / min(image.size)
    width, height = (max(size, round(factor * side)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, whatever it was."""
    if image.mode.startswith("I"):  # 16 bits, whatever PIL calls them
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _decoded(files, data, resize, advance) -> tuple[Images, dict[int, str]]:
    """The images that can be decoded, and index → reason of the others."""
    count, channels = len(files.labels), files.channels
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} {data.size} {resize} {channels}".encode())
        for digest in pool.map(partial(_digest, files), range(count)):
            key.update(digest)
            advance()

        def everything():
            images, bad = np.empty((count, data.size, data.size, channels), np.uint8), {}
            decode_one = partial(_decode_or_reason, files, size=data.size, resize=resize)
            for i, result in enumerate(pool.map(decode_one, range(count))):
                advance()
                if isinstance(result, str):
                    bad[i] = result
                else:
                    images[i - len(bad)] = result
            return {"images": images[: count - len(bad)]} | faults_as_arrays(bad)

        kept = cached(data, key.hexdigest(), everything)
    bad = faults_from_arrays(kept)
    return Images(kept["images"], np.delete(files.labels, list(bad))), bad


def _looked_at(files, data, _, advance) -> tuple:
    """The images that look whole, and index → reason of the others."""
    bad = files.faults if isinstance(files, Records) else _faults_of_files(files, data, advance)
    whole = np.ones(len(files.labels), bool)
    whole[list(bad)] = False
    return files.select(whole)._replace(size=data.size), bad


def _faults_of_files(files: Files, data, advance) -> dict[int, str]:
    paths = [files.root / path for path in files.paths]
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} scan".encode())
        for path, status in zip(files.paths, pool.map(_status, paths), strict=True):
            key.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
            advance()

        def everything():
            bad = {}
            for i, reason in enumerate(pool.map(fault, paths)):
                advance()
                if reason:
                    bad[i] = reason
            return faults_as_arrays(bad)

        return faults_from_arrays(cached(data, key.hexdigest(), everything))


def faults_as_arrays(bad: dict[int, str]) -> dict[str, np.ndarray]:
    return {"bad": np.array(list(bad), int), "why": np.array(list(bad.values()), str)}


def faults_from_arrays(arrays) -> dict[int, str]:
    return dict(zip(arrays["bad"].tolist(), arrays["why"].tolist(), strict=True))


def _digest(files, i):
    try:
        file = files.file(i)
        content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except OSError as error:
        # A damaged record is reported when it is decoded; a disk is not.
        content = reason(files.name(i), error).encode()
    return hashlib.sha256(content).digest()


def _status(path):
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return UserError(f"{path} cannot be read: {error.strerror}")


def _decode_or_reason(files, i, size, resize):
    try:
        return decode(files.file(i), size, resize, files.channels)
    except FAULTS as error:
        return reason(files.name(i), error)


def fault(file: Path | io.BytesIO) -> str:
    """Why this is not a whole image, without decoding it where its format allows that."""
    try:
        with Image.open(file) as image:
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG":
                image.load()
            elif b"\xff\xd9" not in _end(file):
                image.load()  # an end marker may have much behind it
    except FAULTS as error:
        return reason(str(file), error)
    return ""


def _end(file, size=1024):
    if isinstance(file, io.BytesIO):
        return file.getvalue()[-size:]
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read()


def reason(name: str, error: Exception) -> str:
    """What is wrong with an image, in short.

    Raises:
      UserError: it is the disk; that is no fault of the image, and is not to be kept.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise _unreadable(name, error) from error
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    return " ".join(str(error).replace(repr(name), "it").split())


def _common_size(listing: Listing) -> int:
    """The size of all images, if they are equal squares."""
    sizes: dict = {}
    for files in filter(None, (listing.train, listing.test)):
        for i in range(len(files.labels)):
            try:
                with Image.open(files.file(i)) as image:
                    sizes.setdefault(image.size, files.name(i))
            except FAULTS:
                continue  # reported with the others when all are decoded
            if len(sizes) > 1 or image.size[0] != image.size[1]:
                shown = ", ".join(f"{path} is {w}×{h}" for (w, h), path in sizes.items())
                raise UserError(
                    f"the images are not of one square size ({shown}): choose one, e.g. "
                    "--config.data.size=64"
                )
    if not sizes:
        raise UserError(f"no image can be decoded, {listing.train.name(0)} neither")
    return next(iter(sizes))[0]


def fits_memory(size: int, share: float) -> bool:
    """Whether so many bytes are at most a share of a device's memory, and of this machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = min(stats.get("bytes_limit", host), host)
    return size <= share * limit
