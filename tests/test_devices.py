"""Errors of devices, and processes that do not agree."""

import socket

import jax
import pytest
from conftest import run_command, tiny_config, tiny_data

import orc_jax
from orc_jax import loop
from orc_jax.errors import UserError
from orc_jax.runtime import processes

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
    assert "; the same command goes on from the checkpoint of step 3" in first
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


JOIN = """
from orc_jax.runtime import processes
from orc_jax.errors import UserError
processes.WAITING, processes.TIMEOUT = 0.5, 1
try:
    processes.join(None)
except UserError as error:
    print(error)
"""


def join(**settings):
    names = {"address": "COORDINATOR_ADDRESS", "count": "NUM_PROCESSES", "number": "PROCESS_ID"}
    environment = {f"JAX_{names[key]}": str(value) for key, value in settings.items()}
    return run_command("-c", JOIN, env=environment, check=False)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"address": "localhost"}, "JAX_COORDINATOR_ADDRESS is 'localhost', allowed: HOST:PORT"),
        ({"address": "localhost:x"}, "JAX_COORDINATOR_ADDRESS is 'localhost:x', allowed: HOST:PO"),
        ({"address": "a:1"}, "JAX_NUM_PROCESSES is '', allowed: a whole number from 0"),
        ({"address": "a:1", "count": 2}, "JAX_PROCESS_ID is '', allowed: a whole number from 0"),
        ({"address": "a:1", "count": 2, "number": 2}, "JAX_PROCESS_ID is 2, allowed: 0 to 1, each"),
    ],
)
def test_processes_that_are_started_wrongly(settings, message):
    result = join(**settings)
    assert result.stdout.startswith(message) and not result.stderr


@pytest.mark.parametrize(
    "host, place",
    [("localhost", "localhost:9"), ("no-such-host", "no-such-host:9, a host that is unknown here")],
)
def test_a_process_says_for_whom_it_waits(host, place):
    result = join(address=f"{host}:9", count=2, number=1)
    *waiting, last = result.stderr.splitlines()
    assert waiting and all(line.startswith("waiting since ") for line in waiting)
    assert last.startswith("error: waited since ") and last.endswith(f"for process 0, at {place}")
    assert result.returncode == 1


def test_two_processes_with_one_number():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes._take_number(address, 1)
    try:
        result = join(address=address, count=2, number=1)
    finally:
        processes._numbers.pop().release()
    assert result.stdout == (
        f"another process of this machine has JAX_PROCESS_ID=1 for {address}, too\n"
    )
