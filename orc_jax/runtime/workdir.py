"""Work directories: each belongs to one config and data set, and to one process at a time."""

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from orc_jax import config as configs
from orc_jax import optimizers
from orc_jax.data import Dataset, preprocessing
from orc_jax.data.decode import DAMAGED
from orc_jax.data.folder import printable
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.runtime import files
from orc_jax.runtime.checkpoint_notes import has_checkpoint
from orc_jax.runtime.checkpoints import read_config
from orc_jax.runtime.processes import is_main
from orc_jax.runtime.versions import versions


def check_writable(directory: Path, what: str) -> None:
    """Check that a directory can be made or written to; change nothing.

    Args:
      directory: the directory.
      what: name of the setting, for the error.

    Raises:
      UserError: it cannot.
    """
    directory = directory.absolute()
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
    except OSError as error:
        raise UserError(f"{what} is {directory}: {error.strerror}") from error
    if not existing.is_dir():
        raise UserError(f"{what} is {directory}, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{what} is {directory}, but {existing} cannot be written to")


def check_saveable(directory: Path, what: str) -> None:
    """Check that checkpoints and networks can be saved in a directory; change nothing.

    Args:
      directory, what: see `check_writable`.

    Raises:
      UserError: they cannot. Orbax takes *, ? and [ in a path for a pattern, and would write what
        it cannot read; it takes no path that is not valid text.
    """
    if printable(str(directory.absolute())) != str(directory.absolute()):
        raise UserError(f"{what} is {printable(str(directory))}, allowed: a path in UTF-8")
    if found := set("*?[") & set(str(directory.absolute())):
        raise UserError(f"{what} is {directory}, allowed: a path without {' '.join(sorted(found))}")
    check_writable(directory, what)


def check(workdir: Path, config, dataset: Dataset, extend: bool = False) -> None:
    """Check that a directory is this run's or can become it; change nothing.

    A run that has not begun (see `has_begun`) has nothing to lose: its directory can become
    another run's.

    Args:
      workdir: the directory, which need not exist.
      config: the whole config.
      dataset: what the run trains and is evaluated on.
      extend: see `check_config`.

    Raises:
      UserError: it is not a work directory, or belongs to a run on another config or data set.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"{workdir} is a file, not a work directory")
    if not (workdir / "config.json").exists():
        if has_checkpoint(workdir):
            raise UserError(f"{workdir} has checkpoints, but its config.json is lost")
        # A run that was killed before it wrote its config may have left these.
        own = {".lock", "config.json.new", "data.json", "run.json", DAMAGED}
        own |= {f".{name}.json.new" for name in ("config", "data", "run")}
        if foreign := [path.name for path in workdir.iterdir() if path.name not in own]:
            raise UserError(
                f"{workdir} is not empty and not a work directory: {foreign[0]} is in it"
            )
        return
    read_config(workdir)  # raises if it is another program's
    if not has_begun(workdir):
        return
    check_config(workdir, config, extend)
    if not has_data(workdir, dataset):
        raise UserError(
            f"{workdir} belongs to a run on other images or labels: choose another --workdir"
        )


def has_begun(workdir: Path) -> bool:
    """Return whether a run, or a teacher of it, has or had a checkpoint or trained networks."""
    runs = (workdir, *workdir.glob("teachers/*"))
    traces = ("networks", "damaged")
    return any(has_checkpoint(r) or any((r / trace).exists() for trace in traces) for r in runs)


def check_config(workdir: Path, config, extend: bool = False) -> list[str]:
    """Check that a config is that of the directory's run, or may follow it.

    Settings that change no result may differ, such as the directory of the data. The number of
    epochs may be higher than before.

    Args:
      workdir: of the run.
      config: the whole config.
      extend: whether the run may get more epochs although its learning rate depends on them.

    Returns:
      What differs, each as "key: old value → new value".

    Raises:
      UserError: another setting differs.
    """
    old = read_config(workdir)
    harmless = tuple(f"{key}: " for key in configs.HARMLESS)
    if config.sync_batch_norm and config.micro_batches == 1:
        harmless += ("mesh.",)  # only rounding depends on the mesh
    if old.epochs < config.epochs and (extend or not _depends_on_epochs(config)):
        harmless += ("epochs: ",)
    differences = configs.differences(*map(_with_relative_paths, (old, config)))
    if refused := [entry for entry in differences if not entry.startswith(harmless)]:
        more = refused[0].startswith("epochs: ") and old.epochs < config.epochs
        raise UserError(
            f"{workdir} belongs to a run with another config ({'; '.join(refused)}): "
            "choose another --workdir, or give the same settings to go on with it"
            + ", or --extend for more epochs: the learning rate follows their cosine then"
            * more
        )
    return differences


def _depends_on_epochs(config) -> bool:
    """Return whether the learning rate of a peer depends on the number of epochs."""
    every = [optimizers.settings(config, peer).schedule for peer in config.peers]
    return "cosine" in every


def _with_relative_paths(config):
    """Copy a config, with one spelling for the path that a peer starts from."""
    config = configs.copied(config)
    for peer in config.peers:
        peer.init_from = peer.init_from and os.path.relpath(peer.init_from)
    return config


def has_data(workdir: str | Path, dataset: Dataset) -> bool:
    """Return whether the splits of this data set that are loaded are those of the run."""
    checksums = files.read_json(Path(workdir) / "data.json", "the data.json of a run")
    return all(checksums.get(key) == value for key, value in fingerprint(dataset).items())


class Began(NamedTuple):
    """The facts about a run in `run.json`, for uses of the run without its data.

    Attributes:
      images: preprocessing of the images.
      own_images: peer → its own one, for peers that started from a network of other images.
      class_names: [C], in the order of the outputs.
      train_images: number of training images.
      streamed: whether images are read from disk during training.
      command: command line of the first start.
      versions: package → version, at the first start.
    """

    images: Preprocessing
    own_images: dict[int, Preprocessing]
    class_names: tuple[str, ...]
    train_images: int
    streamed: bool
    command: str
    versions: dict[str, str]


def began(workdir: str | Path) -> Began:
    """Read the facts that a run wrote to `run.json` when it began.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = Path(workdir) / "run.json"
    facts = files.read_json(path, "the run.json of a run")
    try:
        return Began(
            images=preprocessing.from_json(facts),
            own_images={
                int(peer): preprocessing.from_json(facts | scale)
                for peer, scale in facts.get("scales", {}).items()
            },
            class_names=tuple(facts["class_names"]),
            train_images=facts["train_images"],
            streamed=facts["streamed"],
            command=facts["command"],
            versions=facts["versions"],
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not the run.json of a run: {error!r}") from error


def create(
    workdir: Path,
    config,
    dataset: Dataset,
    images: Preprocessing,
    own_images: dict[int, Preprocessing],
    train_images: int,
) -> None:
    """Make a directory this run's, unless it is already, or another's that has begun.

    The config is written last and atomically: a directory without it belongs to no run.

    Args:
      workdir: an existing directory that `check` accepts.
      config: the whole config.
      dataset: both splits.
      images, own_images, train_images: see `Began`.
    """
    if is_main() and not ((workdir / "config.json").exists() and has_begun(workdir)):
        facts = images.to_json() | {
            "scales": {peer: own.scale() for peer, own in own_images.items()},
            "class_names": dataset.class_names,
            "train_images": train_images,
            "streamed": dataset.streamed,
            "command": shlex.join(sys.orig_argv),
            "versions": versions(),
        }
        files.write(workdir / "run.json", files.to_json(facts))
        files.write(workdir / "data.json", files.to_json(fingerprint(dataset)))
        files.write(workdir / "config.json", configs.to_json(config))


def set_epochs(workdir: Path, epochs: int) -> None:
    """Give a run more epochs.

    Args:
      workdir: of the run.
      epochs: of the whole run.
    """
    if is_main():
        config = read_config(workdir)
        config.epochs = epochs
        files.write(workdir / "config.json", configs.to_json(config))


def fingerprint(dataset: Dataset) -> dict:
    """Return the checksums of the splits that are loaded, as "SPLIT_PART" → checksum."""
    splits = {"train": dataset.train, "test": dataset.test, "val": dataset.val}
    return {
        f"{name}_{part}": checksum
        for name, split in splits.items()
        if split is not None
        for part, checksum in split.checksums().items()
    }


class Lock:
    """A lock that keeps a second process out of a work directory.

    A context manager. Of several processes that train together only the main one takes the lock.
    The operating system frees it when the process dies, however that happens.

    Raises:
      UserError: on entry, if another process has the lock or the directory cannot be written to.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        # With `preserve_lock_file`, filelock does not fall back to marker files where there are no
        # locks: a marker would outlive a process that is killed.
        self._lock = FileLock(workdir / ".lock", blocking=False, preserve_lock_file=True)

    def __enter__(self) -> None:
        if not is_main():
            return
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            (self._workdir / ".lock").touch()
        except OSError as error:
            raise UserError(f"cannot write to {self._workdir}: {error.strerror}") from error
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(f"another process is training in {self._workdir}") from error
        except OSError:
            pass  # A file system without locks must not stop the run.

    def __exit__(self, *_):
        self._lock.release()
