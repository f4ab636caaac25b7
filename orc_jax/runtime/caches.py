"""The user's cache directory, which holds decoded images and compiled programs."""

import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    from compression import zstd
except ImportError:
    zstd = None

import jax
from jax.experimental.compilation_cache import compilation_cache

CHECKED = ".checked"  # its time is that of the last check of the programs
# What XLA says when it loads a program that it takes to be of another kind of processor.
REFUSED = "doesn't match the machine type for execution"


def directory() -> Path:
    """Return the cache directory, below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"


def keep_programs() -> None:
    """Keep compiled programs for the next start, unless JAX already has a directory for them.

    Processes that train together must have found each other before.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = directory() / "programs"
    with suppress(OSError):  # a cache that cannot be used must not stop a command
        folder.mkdir(parents=True, exist_ok=True)
        remove_cut_off(folder)
        if not takes_its_own_programs(folder):
            return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def remove_cut_off(folder: Path) -> None:
    """Remove the programs that a kill or a full disk has cut off.

    JAX would never replace them: it warns of them at every start, and compiles again. Only those
    that were written since the last check are looked at.

    Args:
      folder: cache of programs.
    """
    checked = folder / CHECKED
    since = checked.stat().st_mtime_ns if checked.exists() else 0
    new = [path for path in folder.glob("*-cache") if path.stat().st_mtime_ns >= since]
    checked.touch()
    for path in new:
        if not _is_whole(path.read_bytes()):
            path.unlink(missing_ok=True)


def _is_whole(program: bytes) -> bool:
    """Return whether a compressed program can be decompressed."""
    if program.startswith(b"\x28\xb5\x2f\xfd"):  # Zstandard, which Python has from 3.14 on
        return not zstd or _can(zstd.decompress, program, zstd.ZstdError)
    return _can(zlib.decompress, program, zlib.error)


def _can(decompress, program, error) -> bool:
    try:
        decompress(program)
    except error:
        return False
    return True


def takes_its_own_programs(folder: Path) -> bool:
    """Return whether XLA takes the programs that it keeps for this machine's processor.

    On some processors it compiles for features that it does not find when it loads the program,
    and warns of it every time. Whether it does is found out once, by a tiny program.

    Args:
      folder: cache of programs, where the answer is kept.
    """
    parts = (metadata.version("jaxlib"), platform.node(), os.environ.get("JAX_PLATFORMS", ""))
    answer = folder / f".cpu-{'-'.join(parts)}".replace(",", "_")
    known = answer.read_text() if answer.exists() else ""
    if known not in ("refused", "taken"):
        is_refused = jax.default_backend() == "cpu" and REFUSED in _said_on_loading()
        known = "refused" if is_refused else "taken"
        answer.write_text(known)
    return known == "taken"


def _said_on_loading() -> str:
    """Compile a tiny program, load it from a cache, and return what is said on standard error."""
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {key: jax.config.values[key] for key in settings}
    with tempfile.TemporaryDirectory() as folder:
        settings["jax_compilation_cache_dir"] = folder
        try:
            for key, value in settings.items():
                jax.config.update(key, value)
            compilation_cache.reset_cache()
            with _standard_error() as said:
                for _ in range(2):
                    jax.jit(lambda x: x + 1).lower(1.0).compile()
                    jax.clear_caches()
        finally:
            for key, value in before.items():
                jax.config.update(key, value)
            compilation_cache.reset_cache()  # JAX would remember the folder
    return "".join(said)


@contextmanager
def _standard_error() -> Iterator[list[str]]:
    """Keep what the process, its compiled code included, writes to standard error within."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
