"""Image files → uint8 arrays of one size: decoded once and kept, or looked at and left."""

import hashlib
import os
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from rich.progress import Progress

from orc_jax.data import Dataset, Images, hold_out
from orc_jax.data.folder import Files, Listing, find
from orc_jax.errors import UserError

# Part of every cache file's name: to be raised when the same files give other pixels.
VERSION = 1
# What PIL raises for a file that is truncated or no image.
FAULTS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def load(config) -> Dataset:
    """The folder of images `config.data.dir`, at `config.data.size` (filled in if it is 0).

    Decoded if all of them fit `config.data.memory`; else they stay files, which are looked
    at in passing. Without a second split, `config.data.val_share` of every class is cut off the
    training images, the same ones in every run.

    Raises:
      UserError: see `folder.find`; a file cannot be decoded (unless `config.data.on_error` is
        "skip"), or the sizes differ and none is given.
    """
    data = config.data
    listing = find(data.dir)
    data.size = data.size or _common_size(listing)
    count = sum(len(files.paths) for files in (listing.train, listing.test) if files)
    if 0 < data.eval_resize < data.size:
        raise UserError(
            f"data.eval_resize is {data.eval_resize}, allowed: data.size, {data.size}, or more"
        )
    # A run that goes on, or is evaluated, on another machine keeps to what it was.
    fits = not data.streamed if data.class_names else fits_memory(count, data.size, data.memory)
    take = _decoded if fits else _scanned
    splits, faults = [], []
    with Progress(transient=True) as progress:
        for name, files in (("train", listing.train), ("test", listing.test)):
            if files is None:
                splits.append(None)
                continue
            task = progress.add_task(f"reading {name} images", total=2 * len(files.paths))
            resize = data.eval_resize if name == "test" else 0
            split, bad = take(files, data, resize, partial(progress.advance, task))
            splits.append(split)
            faults += [f"{files.root / files.paths[i]} ({why})" for i, why in bad.items()]
    if faults and data.on_error == "stop":
        raise UserError(
            f"{len(faults)} of the images cannot be decoded (--config.data.on_error=skip leaves "
            f"them out): {'; '.join(faults)}"
        )
    if faults:
        print(f"left out {len(faults)} images that cannot be decoded: {'; '.join(faults)}")
    train, test = splits
    for i, name in enumerate(listing.class_names):
        if np.count_nonzero(train.labels == i) < (1 if test else 2):
            raise UserError(f"the class {name!r} has too few images to train and validate on")
    if test is None:
        train, test = hold_out(train, data.val_share, seed=0)
    if not len(test.labels):
        raise UserError(f"{data.dir} has no image to evaluate on")
    return Dataset(train, test, listing.class_names)


def cache_dir(data) -> Path:
    """Where decoded images are kept: `data.cache`, else the user's cache folder."""
    if data.cache:
        return Path(data.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"


def decode(path: str | Path, size: int, resize: int = 0) -> np.ndarray:
    """An image file as uint8 [size, size, 3], its shorter side scaled to size, its centre.

    Grey, palette and 16-bit images become RGB; an alpha channel is dropped.

    Args:
      resize: what the shorter side is scaled to instead, at least size.

    Raises:
      Exception: one of `FAULTS`.
    """
    with Image.open(path) as image:
        # Lets JPEG skip resolution that is not needed.
        image.draft("RGB", (max(size, resize),) * 2)
        return np.asarray(fit(rgb(image), size, resize))


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


def _decoded(files: Files, data, resize, advance) -> tuple[Images, dict[int, str]]:
    """The images that can be decoded, and index → reason of the others."""
    paths = [files.root / path for path in files.paths]
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} {data.size} {resize}".encode())
        for digest in pool.map(_digest, paths):
            key.update(digest)
            advance()

        def everything():
            images, bad = np.empty((len(paths), data.size, data.size, 3), np.uint8), {}
            decoded = pool.map(partial(_decode_or_reason, size=data.size, resize=resize), paths)
            for i, result in enumerate(decoded):
                advance()
                if isinstance(result, str):
                    bad[i] = result
                else:
                    images[i - len(bad)] = result
            return {"images": images[: len(paths) - len(bad)]} | _as_arrays(bad)

        kept = _cached(data, key, everything)
    bad = _from_arrays(kept)
    return Images(kept["images"], np.delete(files.labels, list(bad))), bad


def _scanned(files: Files, data, _, advance) -> tuple[Files, dict[int, str]]:
    """The files that look whole, and index → reason of the others."""
    paths = [files.root / path for path in files.paths]
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} scan".encode())
        for path, status in zip(files.paths, pool.map(_status, paths), strict=True):
            key.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
            advance()

        def everything():
            bad = {}
            for i, reason in enumerate(pool.map(_fault, paths)):
                advance()
                if reason:
                    bad[i] = reason
            return _as_arrays(bad)

        bad = _from_arrays(_cached(data, key, everything))
    whole = np.ones(len(paths), bool)
    whole[list(bad)] = False
    return files.select(whole)._replace(size=data.size), bad


def _cached(data, key, make) -> dict[str, np.ndarray]:
    """The arrays of this key, made and kept if they are not there yet."""
    file = cache_dir(data) / f"{key.hexdigest()[:32]}.npz"
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = make()  # not there, or damaged
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            new = Path(folder) / file.name
            np.savez(new, **arrays)
            new.replace(file)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {file.parent}: {error.strerror}; "
            "--config.data.cache=DIR takes another folder"
        ) from error
    return arrays


def _as_arrays(bad: dict[int, str]) -> dict[str, np.ndarray]:
    return {"bad": np.array(list(bad), int), "why": np.array(list(bad.values()), str)}


def _from_arrays(arrays) -> dict[int, str]:
    return dict(zip(arrays["bad"].tolist(), arrays["why"].tolist(), strict=True))


def _digest(path):
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _status(path):
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return UserError(f"{path} cannot be read: {error.strerror}")


def _decode_or_reason(path, size, resize):
    try:
        return decode(path, size, resize)
    except FAULTS as error:
        return _reason(path, error)


def _fault(path) -> str:
    """Why a file is not a whole image, without decoding it where its format allows that."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG":
                image.load()
            elif b"\xff\xd9" not in _end(path):
                image.load()  # an end marker may have much behind it
    except FAULTS as error:
        return _reason(path, error)
    return ""


def _end(path, size=1024):
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read()


def _reason(path, error):
    """What is wrong with the image; what is wrong with the disk is not kept."""
    if isinstance(error, OSError) and error.errno is not None:
        raise _unreadable(path, error) from error
    return " ".join(str(error).replace(repr(str(path)), "it").split())


def _common_size(listing: Listing) -> int:
    """The size of all images, if they are equal squares."""
    sizes: dict = {}
    for files in filter(None, (listing.train, listing.test)):
        for path in files.paths:
            try:
                with Image.open(files.root / path) as image:
                    sizes.setdefault(image.size, path)
            except FAULTS:
                continue  # reported with the others when all are decoded
            if len(sizes) > 1 or image.size[0] != image.size[1]:
                shown = ", ".join(f"{path} is {w}×{h}" for (w, h), path in sizes.items())
                raise UserError(
                    f"the images are not of one square size ({shown}): choose one, e.g. "
                    "--config.data.size=64"
                )
    if not sizes:
        raise UserError(f"{listing.train.root}: no image can be decoded")
    return next(iter(sizes))[0]


def fits_memory(count: int, size: int, share: float) -> bool:
    """Whether so many RGB images take at most a share of a device's, and of this machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = min(stats.get("bytes_limit", host), host)
    return 3 * count * size**2 <= share * limit
