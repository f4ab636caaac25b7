"""Encoded images → uint8 arrays of one size: decoded once and kept, or looked at and left."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from orc_jax.data import faults
from orc_jax.data.cache import cached
from orc_jax.data.folder import Files, Listing
from orc_jax.data.host import Host
from orc_jax.data.images import Dataset, Images, hold_out
from orc_jax.data.tfds import Records
from orc_jax.errors import UserError

# Part of every cache file's name: to be raised when the same files give other pixels.
VERSION = 1


def load(data, listing: Listing, host: Host, streamed: bool | None = None) -> Dataset:
    """The images of a listing, at `data.size`, or at their own if it is 0.

    Decoded if all of them fit `data.memory`; else they stay as they are, and files are looked at
    in passing. Without a second split, `data.val_share` of every class is cut off the training
    images, the same ones in every run.

    Args:
      data: `config.data`.
      listing: both splits.
      host: the program that loads them.
      streamed: whether they stay as they are; None: if they do not fit.

    Raises:
      UserError: an image cannot be decoded (unless `data.on_error` is "skip"), the sizes differ
        and none is given, or too few are left.
    """
    size = data.size or listing.train.size or _common_size(listing)
    if cut_off := listing.test is None:
        listing = _with_test(data, listing)
    count = len(listing.train.labels) + len(listing.test.labels)
    pixels = count * listing.train.channels * size**2
    if 0 < data.eval_resize < size:
        raise UserError(
            f"data.eval_resize is {data.eval_resize}, allowed: data.size, {size}, or more"
        )
    if streamed is None:
        streamed = not host.broadcast(fits_memory(pixels, data.memory))
    splits = {"train": listing.train, "test": listing.test}
    train, test = _read(data, splits, host, size, streamed)
    classes = np.union1d(listing.train.labels, listing.test.labels)
    for split in (train, test) if cut_off else (train,):
        if len(missing := np.setdiff1d(classes, split.labels)):
            name = listing.class_names[missing[0]]
            raise UserError(f"the class {name!r} has too few images to train and validate on")
    if not len(test.labels):
        raise UserError(f"{data.dir} has no image to evaluate on")
    return Dataset(train, test, listing.class_names)


def load_test(data, listing: Listing, host: Host, size: int, streamed: bool) -> Any:
    """Only the test images of a listing: `Images`, or encoded ones if they are streamed.

    Args:
      data: `config.data`.
      listing: without training images, unless the test images are cut off them.
      host: the program that loads them.
      size: height and width of the images.
      streamed: whether they stay as they are.

    Raises:
      UserError: an image cannot be decoded (unless `data.on_error` is "skip").
    """
    if listing.test is None:
        listing = _with_test(data, listing)
    (test,) = _read(data, {"test": listing.test}, host, size, streamed)
    return test


def _with_test(data, listing) -> Listing:
    train, test = hold_out(listing.train, data.val_share, seed=0)
    return listing._replace(train=train, test=test)


def _read(data, splits: dict, host, size, streamed) -> list:
    """The images of each split without those that are damaged, if these are to be left out."""
    take = _looked_at if streamed else _decoded
    found, shown = [], []
    for name, files in splits.items():
        resize = data.eval_resize if name == "test" else 0
        with host.progress(f"reading {name} images", 2 * len(files.labels)) as advance:
            split, bad = take(files._replace(size=size), resize, host.folder, advance)
        found.append(split)
        shown += [f"{files.name(i)} ({why})" for i, why in bad.items()]
    if shown and data.on_error == "stop":
        raise UserError(
            f"{len(shown)} of the images cannot be decoded (--config.data.on_error=skip leaves "
            f"them out): {'; '.join(shown)}"
        )
    if shown:
        host.say(f"left out {len(shown)} images that cannot be decoded: {'; '.join(shown)}")
    return found


def decode(
    file: str | Path | io.BytesIO, size: int, resize: int = 0, channels: int = 3
) -> np.ndarray:
    """The centre of an encoded image, scaled to size: uint8 [size, size, channels].

    Grey, palette and 16-bit images become RGB; an alpha channel is dropped.

    Args:
      channels: 3, or 1 for grey.
      resize: what the shorter side is scaled to instead, at least size.

    Raises:
      Exception: one of `faults.FAULTS`.
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


def _decoded(files, resize, folder, advance) -> tuple[Images, dict[int, str]]:
    """The images that can be decoded, and index → reason of the others."""
    count, size, channels = len(files.labels), files.size, files.channels
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} {size} {resize} {channels}".encode())
        for digest in pool.map(partial(_digest, files), range(count)):
            key.update(digest)
            advance()

        def everything():
            images, bad = np.empty((count, size, size, channels), np.uint8), {}
            results = pool.map(partial(_decode_or_reason, files, resize=resize), range(count))
            for i, result in enumerate(results):
                advance()
                if isinstance(result, str):
                    bad[i] = result
                else:
                    images[i - len(bad)] = result
            return {"images": images[: count - len(bad)]} | faults.to_arrays(bad)

        kept = cached(folder, key.hexdigest(), everything)
    bad = faults.from_arrays(kept)
    return Images(kept["images"], np.delete(files.labels, list(bad))), bad


def _looked_at(files, _, folder, advance) -> tuple[Files | Records, dict[int, str]]:
    """The images that look whole, and index → reason of the others."""
    bad = files.faults if isinstance(files, Records) else _faults_of_files(files, folder, advance)
    whole = np.ones(len(files.labels), bool)
    whole[list(bad)] = False
    return files.select(whole), bad


def _faults_of_files(files: Files, folder, advance) -> dict[int, str]:
    paths = [files.root / path for path in files.paths]
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} scan".encode())
        for path, status in zip(files.paths, pool.map(_status, paths), strict=True):
            key.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
            advance()

        def everything():
            bad = {}
            for i, reason in enumerate(pool.map(faults.fault, paths)):
                advance()
                if reason:
                    bad[i] = reason
            return faults.to_arrays(bad)

        return faults.from_arrays(cached(folder, key.hexdigest(), everything))


def _digest(files, i):
    try:
        file = files.file(i)
        content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except OSError as error:
        # A damaged record is reported when it is decoded; a disk is not.
        content = faults.reason(files.name(i), error).encode()
    return hashlib.sha256(content).digest()


def _status(path):
    try:
        return path.stat()
    except OSError as error:
        raise faults.unreadable(path, error) from error


def _decode_or_reason(files, i, resize):
    try:
        return decode(files.file(i), files.size, resize, files.channels)
    except faults.FAULTS as error:
        return faults.reason(files.name(i), error)


def _common_size(listing: Listing) -> int:
    """The size of all images, if they are equal squares."""
    sizes: dict = {}
    for files in filter(None, (listing.train, listing.test)):
        for i in range(len(files.labels)):
            try:
                with Image.open(files.file(i)) as image:
                    sizes.setdefault(image.size, files.name(i))
            except faults.FAULTS:
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
