"""The user's cache folder, where decoded images and compiled programs are kept."""

import os
from pathlib import Path

import jax


def directory() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"


def keep_programs() -> None:
    """Keeps compiled programs for the next start, where JAX_COMPILATION_CACHE_DIR says no other."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(directory() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
