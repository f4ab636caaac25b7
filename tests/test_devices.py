"""Errors of devices, and processes that do not agree."""

import jax
import pytest
from conftest import run_command, tiny_config, tiny_data

import orc_jax
from orc_jax import loop
from orc_jax.errors import UserError

FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7516192768 bytes.\n" + "x\n" * 99


def test_a_device_whose_memory_is_full(tmp_path, monkeypatch):
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = 1
    orc_jax.train(config, tmp_path / "run", tiny_data())
    config.epochs = 2
    real = loop.training_batches

    def batches(setup, step):
        yield from real(setup, step)
        raise AssertionError

    def full(*_):
        raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr("orc_jax.training.compile_steps", lambda *_, **__: (full, full, full))
    monkeypatch.setattr(loop, "training_batches", batches)
    with pytest.raises(UserError) as error:
        orc_jax.train(config, tmp_path / "run", tiny_data())
    first, *rest = str(error.value).splitlines()
    assert first.startswith("the memory of a device is full (RESOURCE_EXHAUSTED: Out of memory")
    assert "; the checkpoint of step 3 is whole: the same command goes on" in first
    for remedy in ("remat", "micro_batches", "eval_batch_size", "nvidia-smi"):
        assert remedy in rest[0]
    assert len(rest) == 1


@pytest.mark.parametrize("platform", ["cuda", "gpux"])
def test_a_gpu_that_is_not_there(tmp_path, platform):
    command = ["-m", "orc_jax.main", "--config=configs/digits.py:dml", f"--workdir={tmp_path}/run"]
    result = run_command(*command, env={"JAX_PLATFORMS": platform}, check=False)
    assert result.returncode == 1 and not (tmp_path / "run").exists()
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: JAX finds no device for JAX_PLATFORMS={platform}.")
    assert "JAX_PLATFORMS=cpu uses the processor" in second
