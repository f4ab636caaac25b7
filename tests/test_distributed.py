"""Several processes on this machine that train together, as on a cluster."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import QUICK, ROOT, TOO_LONG, WITH_TINY, run_command
from test_folder import picture, save

import orc_jax
from orc_jax.runtime import metrics
from orc_jax.runtime.processes import STOPPED

PER_EPOCH = 6


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Trains on images that are streamed, so that every process reads its own rows."""
    root = tmp_path_factory.mktemp("distributed") / "images"
    for i, name in enumerate("ab"):
        for j in range(24):
            save(root / "train" / name / f"{j:02}.png", picture(100 * i + j, (8, 8)))
        for j in range(5):
            save(root / "val" / name / f"{j}.png", picture(1000 * i + j, (8, 8)))
    settings = {"dir": root, "size": 8, "memory": 0, "cache": root.parent, "resized_crop": True}
    changes = [f"--config.data.{key}={value}" for key, value in settings.items()]
    config = "--config=configs/folder.py:dml:pixels,pixels"
    # At a low learning rate, so that rounding stays rounding for a while.
    changes += ["--config.optimizer.learning_rate=0.001", "--config.epochs=20"]
    return [WITH_TINY, "orc_jax.main", config, *changes, "--config.batch_size=8"]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """What one process does."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run_command(*command, f"--workdir={workdir}", env=QUICK)
    return workdir


def start(count, *args, **env):
    """The processes of one run, each with one device; what they print is in `process.stdout`."""
    return start_each([args] * count, **env)


def start_each(commands, **env):
    """The same, with a command for each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ
            | QUICK
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(len(commands)),
                "JAX_PROCESS_ID": str(i),
            }
            | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, command in enumerate(commands)
    ]


def end(processes):
    """(exit status, output, errors) of each."""
    try:
        outputs = [process.communicate(timeout=TOO_LONG) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *out) for process, out in zip(processes, outputs, strict=True)]


def wait_for(path, processes):
    while not path.exists():
        assert all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.05)


def assert_same_training(workdir, expected, epochs):
    ours, theirs = metrics.read(workdir), metrics.read(expected)[:epochs]
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        # Rounding differs, and grows from step to step; another image would show at once.
        rtol = 1e-4 if one["epoch"] <= 8 else 0.1
        np.testing.assert_allclose(one["train"]["loss"], other["train"]["loss"], rtol=rtol)


def lines(output):
    """What the command itself printed."""
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]


def test_four_processes_train_as_one(command, alone, tmp_path):
    """Two for the batch, two for the networks."""
    args = ("--config.epochs=3", "--config.mesh.peer=2", f"--workdir={tmp_path}/four")
    results = end(start(4, *command, *args))
    assert [status for status, *_ in results] == [0] * 4, results
    assert_same_training(tmp_path / "four", alone, 3)
    # The main one alone has something to say.
    assert "dml after epoch 3" in results[0][1]
    assert not any(lines(output) for _, output, _ in results[1:])
    logged = metrics.read(tmp_path / "four")[-1]["test"]["loss"]
    np.testing.assert_allclose(orc_jax.evaluate(tmp_path / "four")["loss"], logged, rtol=1e-4)


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(command, alone, tmp_path):
    command = [*command, f"--workdir={tmp_path}/two"]

    def hold(step, name):
        return {"HOLD": str(step), "HELD": str(tmp_path / name), "GO": str(tmp_path / f"{name}.go")}

    processes = start(2, *command, **hold(PER_EPOCH + 3, "first"))
    wait_for(tmp_path / "two" / "checkpoints" / str(PER_EPOCH), processes)
    wait_for(tmp_path / "first", processes)
    processes[1].send_signal(signal.SIGKILL)
    (tmp_path / "first.go").touch()
    (status, _, errors), _ = end(processes)
    assert status != 0
    # Ours; JAX's own if it noticed first, or while a checkpoint was written.
    assert "another process of this run has ended" in errors or "another task died" in errors

    processes = start(2, *command, **hold(3 * PER_EPOCH + 3, "second"))
    wait_for(tmp_path / "second", processes)
    processes[1].send_signal(signal.SIGTERM)
    time.sleep(3)  # JAX looks for the signal once a second
    (tmp_path / "second.go").touch()
    results = end(processes)
    assert [status for status, *_ in results] == [STOPPED, STOPPED], results
    assert "stopped by SIGTERM at step" in results[0][1]

    results = end(start(2, *command))
    assert [status for status, *_ in results] == [0, 0], results
    assert "resumed at step" in results[0][1]
    assert_same_training(tmp_path / "two", alone, 20)


@pytest.mark.parametrize(
    "theirs, message",
    [
        ("--config.seed=7", "config.seed is 0 in process 0 and 7 in process 1"),
        ("--config.epochs=5", "config.epochs is 20 in process 0 and 5 in process 1"),
        ("--workdir={}/other", "the work directory is '{}/run' in process 0 and '{}/other' in"),
        ("--config.data.dir={}/images", "the checksum of the data's "),
    ],
)
def test_processes_that_were_started_differently(command, tmp_path, theirs, message):
    for split in ("train", "val"):  # as many images as the others have, but other ones
        for i, name in enumerate("ab"):
            for j in range(24):
                path = tmp_path / "images" / split / name / f"{j:02}.png"
                save(path, picture(100 * i + j + 5, (8, 8)))
    args = [*command, f"--workdir={tmp_path}/run"]
    results = end(start_each([args, [*args, theirs.format(tmp_path)]]))
    for status, output, errors in results:
        assert status == 1, (output, errors)
        assert message.replace("{}", str(tmp_path)) in errors.splitlines()[-1], errors
        assert errors.splitlines()[-1].startswith("error: the processes differ: ")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_ctrl_c_ends_all_processes_with_a_checkpoint(command, tmp_path):
    hold = {"HOLD": str(PER_EPOCH + 3), "HELD": f"{tmp_path}/held", "GO": f"{tmp_path}/go"}
    processes = start(2, *command, f"--workdir={tmp_path}/run", **hold)
    wait_for(tmp_path / "held", processes)
    processes[0].send_signal(signal.SIGINT)
    time.sleep(3)  # JAX looks for the signal once a second
    (tmp_path / "go").touch()
    results = end(processes)
    assert [status for status, *_ in results] == [STOPPED, STOPPED], results
    assert "stopped by SIGTERM at step" in results[0][1]


def test_the_kubernetes_job_tells_its_processes_what_they_need():
    service, job = yaml.safe_load_all((ROOT / "docs" / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    settings = {entry["name"]: entry.get("value") for entry in container["env"]}
    host, _, port = settings["JAX_COORDINATOR_ADDRESS"].partition(":")
    # A pod of an indexed job is found by its job's name, its index and the headless service.
    assert host == f"{name}-0.{service['metadata']['name']}" and port.isdecimal()
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"job-name": name},
    }
    assert int(settings["JAX_NUM_PROCESSES"]) == spec["completions"] == spec["parallelism"]
    assert "JAX_PROCESS_ID" in settings and spec["completionMode"] == "Indexed"
    python, m, module, config, workdir = container["command"]
    assert (python, m, module) == ("python", "-m", "orc_jax.main")
    assert (ROOT / config.removeprefix("--config=")).exists()
    (volume,) = container["volumeMounts"]
    assert workdir.startswith(f"--workdir={volume['mountPath']}/")
    assert [entry["name"] for entry in pod["volumes"]] == [volume["name"]]
