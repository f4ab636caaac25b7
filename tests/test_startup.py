"""The compilation cache, the time to the first step, and profiles."""

import gzip
import json

import jax
import pytest
from conftest import tiny_config, tiny_data

import orc_jax
from orc_jax.runtime import caches


@pytest.fixture
def no_cache_yet(monkeypatch, tmp_path):
    """JAX as it is without JAX_COMPILATION_CACHE_DIR."""
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    for key, value in before.items():
        jax.config.update(key, value)


def test_programs_are_kept_in_the_users_cache(no_cache_yet):
    caches.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(no_cache_yet / "orc_jax" / "programs")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    caches.keep_programs()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_a_trace_of_some_steps_and_the_time_to_the_first_one(tmp_path, capsys):
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs, config.profile = 4, True
    result = orc_jax.train(config, tmp_path / "run", tiny_data())
    assert "first step after " in capsys.readouterr().out
    (trace,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    with gzip.open(trace) as file:
        assert json.load(file)["traceEvents"]
    # Whether it is traced makes no other run of it.
    config.profile = False
    again = orc_jax.train(config, tmp_path / "run", tiny_data())
    assert again.metrics["test"] == result.metrics["test"]
