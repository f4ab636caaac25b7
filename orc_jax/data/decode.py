"""Image files → uint8 arrays of one size: decoded once, then read from a cache."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
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


def load(config) -> Dataset:
    """The folder of images `config.data.dir`, decoded at `config.data.size`.

    Without a second split, `config.data.val_share` of every class is cut off the training
    images, the same ones in every run.

    Raises:
      UserError: see `folder.find`; a file cannot be decoded (unless `config.data.on_error` is
        "skip"), the sizes differ and none is given, or the images do not fit the memory.
    """
    data = config.data
    listing = find(data.dir)
    size = data.size or _common_size(listing)
    count = sum(len(files.paths) for files in (listing.train, listing.test) if files)
    check_memory(count, size, data.memory)
    splits, faults = [], []
    with Progress(transient=True) as progress:
        for name, files in (("train", listing.train), ("test", listing.test)):
            if files is None:
                splits.append(None)
                continue
            task = progress.add_task(f"reading {name} images", total=2 * len(files.paths))
            images, bad = _decoded(files, size, cache_dir(data), lambda: progress.advance(task))  # noqa: B023
            good = np.ones(len(files.labels), bool)
            good[list(bad)] = False
            splits.append(Images(images, files.labels[good]))
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
    return Dataset(train, test, listing.class_names)


def cache_dir(data) -> Path:
    """Where decoded images are kept: `data.cache`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "orc_jax"
    return Path(data.cache or default)


def decode(path: str | Path, size: int) -> np.ndarray:
    """An image file as uint8 [size, size, 3], its shorter side scaled to size, its centre.

    Grey, palette and 16-bit images become RGB; an alpha channel is dropped.

    Raises:
      OSError, ValueError, SyntaxError: PIL's, for a file that is truncated or no image.
    """
    with Image.open(path) as image:
        image.draft("RGB", (size, size))  # lets JPEG skip resolution that is not needed
        return np.asarray(fit(_rgb(image), size))


def fit(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side scaled to size, and of that the centre, size × size."""
    if image.size == (size, size):
        return image
    factor = size / min(image.size)
    width, height = (max(size, round(factor * side)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _rgb(image):
    if image.mode.startswith("I"):  # 16 bits, whatever PIL calls them
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _decoded(files: Files, size: int, cache: Path, advance) -> tuple[np.ndarray, dict[int, str]]:
    """The images that can be decoded [N, size, size, 3], and index → reason of the others."""
    paths = [files.root / path for path in files.paths]
    with ThreadPoolExecutor() as pool:

        def each(function):
            for result in pool.map(function, paths):
                advance()
                yield result

        key = hashlib.sha256(f"{VERSION} {size}".encode())
        for digest in each(_digest):
            key.update(digest)
        file = cache / f"{key.hexdigest()[:32]}.npz"
        if file.exists():
            with np.load(file) as kept:
                return kept["images"], dict(
                    zip(kept["bad"].tolist(), kept["why"].tolist(), strict=True)
                )
        images, bad = np.empty((len(paths), size, size, 3), np.uint8), {}
        for i, result in enumerate(each(lambda path: _decode_or_reason(path, size))):
            if isinstance(result, str):
                bad[i] = result
            else:
                images[i - len(bad)] = result
    images = images[: len(paths) - len(bad)]
    cache.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.savez(
            out, images=images, bad=np.array(list(bad), int), why=np.array(list(bad.values()), str)
        )
    temporary.replace(file)
    return images, bad


def _digest(path):
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _decode_or_reason(path, size):
    try:
        return decode(path, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return " ".join(str(error).replace(repr(str(path)), "it").split())


def _common_size(listing: Listing) -> int:
    """The size of all images, if they are equal squares."""
    sizes: dict = {}
    for files in filter(None, (listing.train, listing.test)):
        for path in files.paths:
            try:
                with Image.open(files.root / path) as image:
                    sizes.setdefault(image.size, path)
            except (OSError, ValueError, SyntaxError):
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


def check_memory(count: int, size: int, share: float) -> None:
    """Raises `UserError` if so many RGB images take more than a share of a device's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 3 * count * size**2 > share * limit:
        raise UserError(
            f"{count} images of {size}×{size} take {3 * count * size**2 / 2**30:.1f} GiB decoded, "
            f"more than data.memory, {share}, of the device's {limit / 2**30:.1f} GiB: choose a "
            "smaller data.size"
        )
