"""Encoded images: decoded once to uint8 arrays of one size, or checked and left encoded."""

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
from orc_jax.errors import UserError, counted

# Part of the key of every cache file. Raise it when the same files are decoded to other pixels.
VERSION = 3
SHOWN = 10  # of many damaged images
DAMAGED = "damaged.txt"  # file that lists them all
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on, the stored image lies on its side
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(
    data,
    listing: Listing,
    host: Host,
    streamed: bool | None = None,
    seed: int = 0,
    bits: int = 0,
) -> Dataset:
    """Load the images of a listing at `data.size`, or at their own size if it is 0.

    The images are decoded if all of them fit into `data.memory`. Otherwise they are left encoded,
    and files are only checked for damage. Without a second split, `data.test_share` of every class
    is held out from the training images; every run holds out the same images. Without validation
    images, `data.val_share` of what remains is held out by the seed.

    Args:
      data: `config.data`.
      listing: the training, the test and, if there are any, the validation images.
      host: the program that loads the images.
      streamed: whether to leave the images encoded; None to decide by `data.memory`.
      seed: of the run.
      bits: bits that the levels of 16-bit images have; 0 to find out.

    Raises:
      UserError: an image cannot be decoded (unless `data.on_error` is "skip"), the images differ
        in size and `data.size` is 0, or a class or split has too few images.
    """
    for note in listing.notes:
        host.say(note)
    size = data.size or listing.train.size or _common_size(listing)
    if held_out := listing.test is None:
        listing = _with_test(data, listing)
    if listing.val is None:
        # Here, so that they are scaled as the test images are.
        train, val = hold_out(listing.train, data.val_share, seed)
        listing = listing._replace(train=train, val=val)
    elif data.val_share:
        host.say("data.val_share is not used: the data has validation images of its own")
    splits = {"train": listing.train, "test": listing.test, "val": listing.val}
    splits = {name: files for name, files in splits.items() if files is not None}
    count = sum(len(files.labels) for files in splits.values())
    pixels = count * listing.train.channels * size**2
    if 0 < data.eval_resize < size:
        raise UserError(
            f"data.eval_resize is {data.eval_resize}, allowed: data.size, {size}, or more"
        )
    if streamed is None:
        streamed = not host.broadcast(fits_memory(pixels, data.memory))
    bits = bits or _bits(listing.train)
    if bits != 16:
        host.say(f"16-bit images: levels from 0 to {2**bits - 1} ({bits} bits) are scaled to 255")
    train, test, *val = _read(data, splits, host, size, streamed, bits)
    classes = np.union1d(listing.train.labels, listing.test.labels)
    for split in (train, test) if held_out else (train,):
        if len(missing := np.setdiff1d(classes, split.labels)):
            name = listing.class_names[missing[0]]
            raise UserError(f"the class {name!r} has too few images to train and validate on")
    if not len(test.labels):
        raise UserError(f"{data.dir} has no image to evaluate on")
    return Dataset(train, test, listing.class_names, val[0] if val else None, bits)


def load_test(data, listing: Listing, host: Host, size: int, streamed: bool, bits: int = 16) -> Any:
    """Load only the test images of a listing.

    Args:
      data: `config.data`.
      listing: the test images, or the training images if test images are held out from them.
      host: the program that loads the images.
      size: height and width of the images, in pixels.
      streamed: whether to leave the images encoded.
      bits: bits that the levels of 16-bit images have.

    Returns:
      `Images`, or encoded images (`folder.Files`, `tfds.Records`) if they are streamed.

    Raises:
      UserError: an image cannot be decoded (unless `data.on_error` is "skip").
    """
    if listing.test is None:
        listing = _with_test(data, listing)
    (test,) = _read(data, {"test": listing.test}, host, size, streamed, bits)
    return test


def _with_test(data, listing) -> Listing:
    train, test = hold_out(listing.train, data.test_share, seed=0)
    return listing._replace(train=train, test=test)


def _bits(train, count: int = 512) -> int:
    """Return how many bits the levels of 16-bit images have, by a sample of them.

    Scanners and microscopes write 10, 12 or 14 bits into files of 16.
    """
    largest = 0
    for i in np.random.default_rng(0).permutation(len(train.labels))[:count].tolist():
        try:
            with faults.open_image(train.file(i)) as image:
                if image.mode.startswith("I"):
                    largest = max(largest, int(np.asarray(image).max()))
        except faults.FAULTS:
            continue  # damaged images are reported when all are decoded
    return max(8, largest.bit_length()) if largest else 16


def _read(data, splits: dict, host, size, streamed, bits) -> list:
    """Read the images of each split; leave out damaged ones, or stop at them, as configured."""
    read_split = _check_all if streamed else _decode_all
    read, damaged = [], []
    for name, files in splits.items():
        resize = 0 if name == "train" else data.eval_resize
        with host.progress(f"reading {name} images", 2 * len(files.labels)) as advance:
            files = files._replace(size=size, bits=bits)
            split, bad = read_split(files, resize, host.folder, advance)
        read.append(split)
        damaged += [f"{files.name(i)} ({why})" for i, why in bad.items()]
    if not damaged:
        return read
    shown = "; ".join(damaged[:SHOWN])
    if len(damaged) > SHOWN:
        shown += f"; and {len(damaged) - SHOWN} more"
        if host.reports:
            host.reports.mkdir(parents=True, exist_ok=True)
            everything = host.reports / DAMAGED
            everything.write_text("\n".join(damaged) + "\n")
            shown += f" (all of them are in {everything})"
    if data.on_error == "stop":
        raise UserError(
            f"{len(damaged)} of the images cannot be decoded (--config.data.on_error=skip leaves "
            f"them out): {shown}"
        )
    host.say(f"left out {counted(len(damaged), 'image')} that cannot be decoded: {shown}")
    return read


def decode(
    file: str | Path | io.BytesIO, size: int, resize: int = 0, channels: int = 3, bits: int = 16
) -> np.ndarray:
    """Decode an image, scale its shorter side, and take the centre.

    The image is turned upright, as EXIF says. Grey, palette and 16-bit images become RGB; what is
    transparent is laid over white.

    Args:
      file: the encoded image.
      size: height and width of the result, in pixels.
      resize: pixels to which the shorter side is scaled, at least `size`; 0 for `size`.
      channels: 3, or 1 for grey.
      bits: bits that the levels of a 16-bit image have.

    Returns:
      uint8 [size, size, channels].

    Raises:
      Exception: one of `faults.FAULTS`, if the image is damaged.
    """
    with faults.open_image(file) as image:
        # JPEG need not decode resolution that the result does not have.
        image.draft("RGB", (max(size, resize),) * 2)
        return as_array(fit(rgb(image, bits), size, resize), channels)


def come_from_files(image_shape: tuple[int, int, int]) -> bool:
    """Return whether `decode` can return images of this shape: square, and grey or RGB.

    Args:
      image_shape: (height, width, channels).
    """
    height, width, channels = image_shape
    return height == width and channels in (1, 3)


def as_array(image: Image.Image, channels: int) -> np.ndarray:
    """Convert an RGB image to uint8 [height, width, channels].

    Args:
      image: an image in RGB.
      channels: 3, or 1 for grey.
    """
    return np.asarray(image) if channels == 3 else np.asarray(image.convert("L"))[..., None]


def fit(image: Image.Image, size: int, resize: int = 0) -> Image.Image:
    """Scale the shorter side of an image, and take the centre.

    Args:
      image: an image of any size.
      size: height and width of the result, in pixels.
      resize: pixels to which the shorter side is scaled, at least `size`; 0 for `size`.
    """
    if image.size == (size, size) and not resize:
        return image
    factor = (resize or size) / min(image.size)
    width, height = (max(size, round(factor * side)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    # The centre alone is scaled: a strip of 1 × 100,000 pixels would become gigabytes.
    x, y = image.size[0] / width, image.size[1] / height
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def lies_on_its_side(image: Image.Image) -> bool:
    """Return whether `rgb` will exchange the height and width of an image."""
    # Of a TIFF file, Pillow tells the size that the image will have, and turns it itself.
    return image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5


def rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """Convert an image of any mode to RGB, and turn it upright.

    Args:
      image: an image of any mode.
      bits: bits that the levels of a 16-bit image have.
    """
    # Not by `ImageOps.exif_transpose`, which writes EXIF data anew and fails where they are odd.
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if turn is not None and image.format != "TIFF":
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # 16 bits; Pillow has several such modes
        levels = np.asarray(image).astype(np.int64) >> (bits - 8)
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decode_all(files, resize, folder, advance) -> tuple[Images, dict[int, str]]:
    """Return the images that can be decoded, and index → reason for the others."""
    count, size, channels = len(files.labels), files.size, files.channels
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} {size} {resize} {channels} {files.bits}".encode())
        for digest in pool.map(partial(_digest, files), range(count)):
            key.update(digest)
            advance()

        def make():
            images, bad = np.empty((count, size, size, channels), np.uint8), {}
            results = pool.map(partial(_decode_or_reason, files, resize=resize), range(count))
            for i, result in enumerate(results):
                advance()
                if isinstance(result, str):
                    bad[i] = result
                else:
                    images[i - len(bad)] = result
            return {"images": images[: count - len(bad)]} | faults.to_arrays(bad)

        arrays = cached(folder, key.hexdigest(), make)
    bad = faults.from_arrays(arrays)
    return Images(arrays["images"], np.delete(files.labels, list(bad))), bad


def _check_all(files, _, folder, advance) -> tuple[Files | Records, dict[int, str]]:
    """Return the images that look undamaged, still encoded, and index → reason for the others."""
    bad = files.faults if isinstance(files, Records) else _faults_of_files(files, folder, advance)
    whole = np.ones(len(files.labels), bool)
    whole[list(bad)] = False
    return files.select(whole), bad


def _faults_of_files(files: Files, folder, advance) -> dict[int, str]:
    """Return index → reason for the files that look damaged."""
    paths = [files.root / path for path in files.paths]
    with ThreadPoolExecutor() as pool:
        key = hashlib.sha256(f"{VERSION} scan".encode())
        for path, status in zip(files.paths, pool.map(_status, paths), strict=True):
            key.update(os.fsencode(f"{path} {status.st_size} {status.st_mtime_ns}"))
            advance()

        def make():
            bad = {}
            for i, reason in enumerate(pool.map(faults.fault, paths)):
                advance()
                if reason:
                    bad[i] = reason
            return faults.to_arrays(bad)

        return faults.from_arrays(cached(folder, key.hexdigest(), make))


def _digest(files, i):
    try:
        file = files.file(i)
        content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except OSError as error:
        # A damaged record is reported when it is decoded; a disk error is raised here.
        content = faults.reason(files.name(i), error).encode()
    return hashlib.sha256(content).digest()


def _status(path):
    try:
        return path.stat()
    except OSError as error:
        raise faults.unreadable(path, error) from error


def _decode_or_reason(files, i, resize):
    try:
        return decode(files.file(i), files.size, resize, files.channels, files.bits)
    except faults.FAULTS as error:
        return faults.reason(files.name(i), error)


def _common_size(listing: Listing) -> int:
    """Return the height and width of the images, which must all be squares of one size."""
    sizes: dict[tuple[int, int], str] = {}
    for files in filter(None, (listing.train, listing.test, listing.val)):
        for i in range(len(files.labels)):
            try:
                with faults.open_image(files.file(i)) as image:
                    sizes.setdefault(image.size, files.name(i))
            except faults.FAULTS:
                continue  # damaged images are reported together when all are decoded
            if len(sizes) > 1 or image.size[0] != image.size[1]:
                shown = ", ".join(f"{path} is {w}×{h}" for (w, h), path in sizes.items())
                raise UserError(
                    f"the images are not of one square size ({shown}): choose one, e.g. "
                    "--config.data.size=64"
                )
    if not sizes:
        raise UserError(f"none of the images can be decoded, for example {listing.train.name(0)}")
    return next(iter(sizes))[0]


def fits_memory(size: int, share: float) -> bool:
    """Return whether an array fits into a share of both the device's and this machine's memory.

    Args:
      size: size of the array, in bytes.
      share: share of the memory, 0 to 1.
    """
    device = jax.local_devices()[0]
    host = host_memory()
    if device.platform == "cpu":
        return 2 * size <= share * host  # the device's copy is in the same memory
    return size <= share * min((device.memory_stats() or {}).get("bytes_limit", host), host)


def host_memory(cgroup: str = "/sys/fs/cgroup") -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's.

    Args:
      cgroup: where the system tells the limits of a container.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2, of version 1
        try:
            memory = min(memory, int(Path(cgroup, name).read_text()))
        except (OSError, ValueError):
            continue  # there is no such file, or its limit is "max"
    return memory
