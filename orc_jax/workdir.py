"""A work directory belongs to one config, and to one process at a time."""

import fcntl
from pathlib import Path

from orc_jax import config as configs
from orc_jax.checkpoint import read_config
from orc_jax.errors import UserError


def claim(workdir: Path, config) -> None:
    """Makes a work directory this config's, or checks that it is."""
    if (workdir / "config.json").exists():
        found = configs.differences(read_config(workdir), config)
        if found:
            raise UserError(
                f"{workdir} belongs to a run with another config ({'; '.join(found)}): "
                "choose another --workdir, or give the same settings to go on with it"
            )
        return
    others = [path.name for path in workdir.iterdir() if path.name != Lock.NAME]
    if others:
        raise UserError(f"{workdir} is not empty and not a work directory: {others[0]} is in it")
    temporary = workdir / "config.json.new"
    temporary.write_text(configs.to_json(config))
    temporary.replace(workdir / "config.json")


class Lock:
    """Keeps a second process out of a work directory, until this one ends."""

    NAME = ".lock"

    def __init__(self, workdir: Path):
        self._workdir = workdir

    def __enter__(self):
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = (self._workdir / self.NAME).open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self._workdir}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training in {self._workdir}") from error

    def __exit__(self, *_):
        self._file.close()
