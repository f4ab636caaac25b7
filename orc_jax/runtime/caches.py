"""The user's cache directory, which holds decoded images and compiled programs."""

import os
from pathlib import Path

import jax


def directory() -> Path:
    """Return the cache directory, below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"


def keep_programs() -> None:
    """Keep compiled programs for the next start, unless JAX already has a directory for them."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(directory() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
