"""A work directory belongs to one config and data set, and to one process at a time."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from orc_jax import config as configs
from orc_jax.data import Dataset, preprocessing
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.runtime.checkpoints import read_config
from orc_jax.runtime.processes import is_main
from orc_jax.runtime.versions import versions

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nothing keeps a second process out.
    fcntl = None


def check(workdir: Path, config, dataset: Dataset) -> None:
    """Raises `UserError` if the directory belongs to something else; touches nothing."""
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"{workdir} is a file, not a work directory")
    if not (workdir / "config.json").exists():
        # A kill may have left these before there was a config.
        ours = {".lock", "config.json.new", "data.json", "run.json"}
        if others := [path.name for path in workdir.iterdir() if path.name not in ours]:
            raise UserError(
                f"{workdir} is not empty and not a work directory: {others[0]} is in it"
            )
        return
    check_config(workdir, config)
    if not has_data(workdir, dataset):
        raise UserError(
            f"{workdir} belongs to a run on other images or labels: choose another --workdir"
        )


def check_config(workdir: Path, config) -> None:
    """Raises `UserError` if the directory is that of a run with another config."""
    found = configs.differences(*map(_with_paths, (read_config(workdir), config)))
    # Where and how images are read does not change a result, nor what is to be done about files
    # that are damaged: which ones they are is in the fingerprint.
    reading = ("dir", "cache", "memory", "workers", "on_error")
    elsewhere = ("profile: ", "remat: ", *(f"data.{key}: " for key in reading))
    if config.sync_batch_norm and config.micro_batches == 1:
        elsewhere += ("mesh.",)  # then it changes rounding alone
    if found := [difference for difference in found if not difference.startswith(elsewhere)]:
        raise UserError(
            f"{workdir} belongs to a run with another config ({'; '.join(found)}): "
            "choose another --workdir, or give the same settings to go on with it"
        )


def _with_paths(config):
    """A copy in which a teacher's path has one spelling."""
    config = configs.copied(config)
    for peer in config.peers:
        peer.init_from = peer.init_from and os.path.relpath(peer.init_from)
    return config


def has_data(workdir: str | Path, dataset: Dataset) -> bool:
    """Whether the splits of this data set that are loaded are those of the run."""
    noted = json.loads((Path(workdir) / "data.json").read_text())
    return all(noted.get(key) == value for key, value in fingerprint(dataset).items())


class Began(NamedTuple):
    """What a run notes when it begins, so that it is there when the data is not at hand.

    Attributes:
      images: what its networks' images are like.
      class_names: in the order of their indices.
      train_images: how many it trains on.
      streamed: whether images are read while it trains.
      command: that began it.
      versions: name → version, of the packages that it began with.
    """

    images: Preprocessing
    class_names: tuple[str, ...]
    train_images: int
    streamed: bool
    command: str
    versions: dict[str, str]


def began(workdir: str | Path) -> Began:
    """What a run noted when it began; `UserError` if that is not there."""
    path = Path(workdir) / "run.json"
    try:
        noted = json.loads(path.read_text())
        images = preprocessing.from_json(noted)
        own = {key: noted[key] for key in Began._fields if key != "images"}
        return Began(images, **own | {"class_names": tuple(noted["class_names"])})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not what a run notes when it begins: {error!r}") from error


def create(
    workdir: Path, config, dataset: Dataset, images: Preprocessing, train_images: int
) -> None:
    """Makes an unclaimed work directory this config's; the config is written last.

    Args:
      workdir: to be made this config's.
      config: the whole config.
      dataset: both splits.
      images, train_images: see `Began`.
    """
    if is_main() and not (workdir / "config.json").exists():
        noted = images.to_json() | {
            "class_names": dataset.class_names,
            "train_images": train_images,
            "streamed": dataset.streamed,
            "command": shlex.join(sys.orig_argv),
            "versions": versions(),
        }
        (workdir / "run.json").write_text(json.dumps(noted, indent=2) + "\n")
        (workdir / "data.json").write_text(json.dumps(fingerprint(dataset)))
        temporary = workdir / "config.json.new"
        temporary.write_text(configs.to_json(config))
        temporary.replace(workdir / "config.json")


def fingerprint(dataset: Dataset) -> dict:
    """Checksums of what a data set consists of, as far as it is loaded."""
    splits = {"train": dataset.train, "test": dataset.test}
    return {
        f"{name}_{part}": checksum
        for name, split in splits.items()
        if split is not None
        for part, checksum in split.checksums().items()
    }


class Lock:
    """Keeps a second run out of a work directory, until this one ends."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._file = None

    def __enter__(self):
        if not is_main():
            return
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = (self._workdir / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self._workdir}: {error.strerror}") from error
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in {self._workdir}") from error
        except OSError:
            pass  # a file system without locks

    def __exit__(self, *_):
        if self._file:
            self._file.close()
