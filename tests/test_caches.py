"""The caches of compiled programs and of decoded images."""

import os
import platform
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from orc_jax.data import cache
from orc_jax.runtime import caches


def test_programs_that_were_cut_off_are_removed(tmp_path):
    whole = zlib.compress(b"program" * 1000)
    for name, content in (("whole", whole), ("cut", whole[:-3]), ("empty", b"")):
        (tmp_path / f"{name}-cache").write_bytes(content)
    caches.remove_cut_off(tmp_path)
    assert [path.name for path in tmp_path.glob("*-cache")] == ["whole-cache"]

    # Only what was written since is looked at again.
    old = tmp_path / "old-cache"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    (tmp_path / "new-cache").write_bytes(whole[:10])
    caches.remove_cut_off(tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"whole-cache", "old-cache"}


@pytest.mark.parametrize("said, taken", [("", True), (f"E0 loader.cc] {caches.REFUSED}", False)])
def test_a_cpu_whose_programs_are_refused_has_no_cache(tmp_path, monkeypatch, said, taken):
    calls = []
    monkeypatch.setattr(caches, "_said_on_loading", lambda: calls.append(1) or said)
    assert caches.takes_its_own_programs(tmp_path) == taken
    assert caches.takes_its_own_programs(tmp_path) == taken
    assert len(calls) == 1


LOADED = """
import os
from orc_jax.runtime import caches
real = caches.jax.clear_caches
def clear():
    os.write(2, b"said by compiled code")
    real()
caches.jax.clear_caches = clear
assert caches._said_on_loading() == 2 * "said by compiled code"
assert caches.jax.config.values["jax_compilation_cache_dir"] is None
"""


def test_what_is_said_while_a_program_is_loaded(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        f"orc_jax-new-{platform.node()}-{ended.pid}-a1": False,
        f"orc_jax-new-{platform.node()}-{os.getpid()}-a2": True,
        "orc_jax-new-another-host-12-a3": True,
        "orc_jax-new-another-host-12-a4": False,
    }
    theirs = tmp_path / "orc_jax-new-thesis"
    for name in (*names, theirs.name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.npz").write_bytes(b"0")
    os.utime(tmp_path / "orc_jax-new-another-host-12-a4", (0, 0))
    os.utime(theirs, (0, 0))
    cache.cached(tmp_path, "k" * 40, lambda: {"a": np.arange(3)})
    kept = {name for name, is_kept in names.items() if is_kept}
    assert {path.name for path in tmp_path.glob("orc_jax-new-*")} == {*kept, theirs.name}


def test_what_was_not_used_for_longest_is_forgotten(tmp_path, monkeypatch):
    def arrays():
        return {"a": np.zeros(1000, np.uint8)}

    for age, key in enumerate("abc"):
        cache.cached(tmp_path, key * 40, arrays)
        os.utime(tmp_path / f"{key * 32}.npz", (time.time() - 100 + age,) * 2)
    cache.cached(tmp_path, "a" * 40, lambda: 1 / 0)  # used
    (tmp_path / "my_results.npz").write_bytes(b"0" * 10000)
    os.utime(tmp_path / "my_results.npz", (0, 0))
    monkeypatch.setattr(cache, "LIMIT", 3 * (tmp_path / f"{'a' * 32}.npz").stat().st_size)
    cache.cached(tmp_path, "d" * 40, arrays)
    assert {path.name[0] for path in tmp_path.glob("*.npz")} == {"a", "c", "d", "m"}
