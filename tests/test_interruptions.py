"""Signals at bad moments, and processes that are killed."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from conftest import (
    QUICK,
    ROOT,
    TOO_LONG,
    WITH_TINY,
    assert_trees_equal,
    run_command,
    tiny_config,
    tiny_data,
)
from test_folder import picture, save

import orc_jax
from orc_jax import loop
from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoint_notes import steps
from orc_jax.runtime.signals import Interruption

NETWORKS = ("pixels", "pixels")


# Before a command: it gets Ctrl-C even if this process, as those of pytest-xdist, ignores it.
INTERRUPTIBLE = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def until(condition, process=None):
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number):
    seen, again = [], []
    before = signal.signal(number, lambda *args: seen.append(args[0]))
    mine = signal.getsignal(number)
    try:
        with Interruption(again=lambda: again.append(1)) as interruption:
            assert not interruption.stops()
            signal.raise_signal(number)
            until(interruption.stops)
            assert interruption.requested == number.name and not seen and not again
            signal.raise_signal(number)
            until(lambda: seen)
            assert signal.getsignal(number) is mine
        assert signal.getsignal(number) is mine and seen == [number]
        assert again == [1]
    finally:
        signal.signal(number, before)


def without_times(workdir):
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in r.items() if k not in times} for r in metrics.read(workdir)]


@pytest.mark.parametrize("checkpoint_every", [1, 5])
def test_a_signal_during_the_evaluation_is_obeyed_there(tmp_path, monkeypatch, checkpoint_every):
    config, data = tiny_config(NETWORKS, "dml"), tiny_data()
    config.checkpoint_every, config.eval_batch_size = checkpoint_every, 1
    full = orc_jax.train(config, tmp_path / "full", data)
    real, batches = loop.evaluate_split, []

    def evaluate_split(setup, step, state, split, check):
        def checked():
            batches.append(len(steps(tmp_path / "run")))
            if len(batches) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)  # a thread notes it
            check()

        return real(setup, step, state, split, checked)

    monkeypatch.setattr(loop, "evaluate_split", evaluate_split)
    stopped = orc_jax.train(config, tmp_path / "run", data)
    assert stopped.stopped_by == "SIGTERM" and len(batches) == 3
    # What is due is written before the evaluation, and anything else when it is stopped.
    per_epoch = 3
    assert int(stopped.state.step) == per_epoch and steps(tmp_path / "run") == [per_epoch]
    assert not metrics.read(tmp_path / "run") and not stopped.metrics

    monkeypatch.setattr(loop, "evaluate_split", real)
    resumed = orc_jax.train(config, tmp_path / "run", data)
    assert_trees_equal(jax.device_get(resumed.state), jax.device_get(full.state))
    assert without_times(tmp_path / "run") == without_times(tmp_path / "full")


def test_a_checkpoint_after_some_minutes(tmp_path, monkeypatch):
    config, data = tiny_config(NETWORKS, "dml"), tiny_data(train=160)
    config.epochs, config.checkpoint_minutes = 1, 20.0
    saved, real = [], loop.Loop._save
    monkeypatch.setattr(loop.Loop, "_save", lambda run: saved.append(run.step) or real(run))
    orc_jax.train(config, tmp_path / "slow", data)
    assert saved == [10, 10]  # at the end of the epoch, and before its score is noted

    clock = itertools.count(0.0, 400.0)  # seconds, at every look
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    saved.clear()
    orc_jax.train(config, tmp_path / "run", data)
    assert saved[0] < saved[1] < 10
    assert steps(tmp_path / "run") == sorted(set(saved))[-2:]


def command_on(root, validation=1):
    """Trains on images that two processes read."""
    for i, name in enumerate("ab"):
        for j in range(24):
            save(root / "train" / name / f"{j:02}.png", picture(100 * i + j, (8, 8)))
        for j in range(validation):
            save(root / "val" / name / f"{j}.png", picture(1000 * i + j, (8, 8)))
    settings = {"dir": root, "size": 8, "memory": 0, "cache": root.parent, "workers": 2}
    changes = [f"--config.data.{key}={value}" for key, value in settings.items()]
    changes += ["--config.epochs=20", "--config.batch_size=8"]
    return [WITH_TINY, "orc_jax.main", "--config=configs/folder.py:dml:pixels,pixels", *changes]


def held(command, tmp_path, name, step, environment=None):
    """A process group that trains, and waits before a step; and the file that lets it go on."""
    here, go = tmp_path / name, tmp_path / f"{name}.go"
    process = subprocess.Popen(
        [sys.executable, *command, f"--workdir={tmp_path}/run"],
        cwd=ROOT,
        env=os.environ
        | QUICK
        | {"HOLD": str(step), "HELD": str(here), "GO": str(go)}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until(here.exists, process)
    return process, go


def members(group):
    """process → command line, of those that live in a process group."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()
            if int(state[2]) == group and state[0] != "Z":
                found[int(path.name)] = (path / "cmdline").read_text()
        except (OSError, ValueError):
            continue  # it has ended
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_reading_workers_that_are_killed_orphaned_or_interrupted(tmp_path):
    command = command_on(tmp_path / "images")
    shared = set(Path("/dev/shm").iterdir())

    process, go = held(command, tmp_path, "first", 9)
    workers = [pid for pid, line in members(process.pid).items() if "spawn_main" in line]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    go.touch()
    output, _ = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 1 and "Traceback" not in output, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: a process that reads images has died")
    step = steps(tmp_path / "run")[-1]
    assert f"; the same command goes on from the checkpoint of step {step}" in last and step >= 9
    until(lambda: not members(process.pid))

    process, _ = held(command, tmp_path, "second", step + 2)
    process.kill()
    process.communicate(timeout=TOO_LONG)
    until(lambda: not members(process.pid))
    assert set(Path("/dev/shm").iterdir()) == shared

    process, go = held(command, tmp_path, "third", step + 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    time.sleep(1)  # a thread notes it
    go.touch()
    output, _ = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert f"stopped by SIGINT at step {steps(tmp_path / 'run')[-1]}: checkpoint saved" in output
    until(lambda: not members(process.pid))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ctrl_c_during_an_evaluation_whose_images_are_read_by_workers(tmp_path):
    command = command_on(tmp_path / "images", validation=200)
    changes = ["--config.epochs=1", "--config.data.workers=0", f"--workdir={tmp_path}/run"]
    run_command(*command, *changes, env=QUICK)
    text = (tmp_path / "run" / "config.json").read_text()
    for old, new in (
        ('"workers": 0', '"workers": 2'),
        ('"eval_batch_size": 500', '"eval_batch_size": 1'),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "run" / "config.json").write_text(text)
    evaluate = [WITH_TINY, "orc_jax.evaluate", f"--workdir={tmp_path}/run"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *evaluate],
        cwd=ROOT,
        env=os.environ | QUICK,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def are_reading():
        return sum("spawn_main" in line for line in members(process.pid).values()) == 2

    until(are_reading, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=TOO_LONG)
    assert (process.returncode, output) == (130, "interrupted\n")
    until(lambda: not members(process.pid))


def test_the_second_ctrl_c_ends_a_command_at_once(tmp_path):
    command = [WITH_TINY, "orc_jax.main", "--config=configs/digits.py:dml:pixels,pixels"]
    process, _ = held(command, tmp_path, "held", 3)  # and nothing will let it go on
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 130 and "Traceback" not in output
    assert output.strip().splitlines()[-1].startswith("SIGINT again: stopped at once")


@pytest.mark.parametrize("loaded", ["jax", "orc_jax.models"])
def test_ctrl_c_while_packages_load(loaded):
    arguments = ["-X", "importtime", "-m", "orc_jax.main", "--config=x.py"]
    command = [sys.executable, "-c", INTERRUPTIBLE, *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.split("|")[-1].strip() == loaded:
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TOO_LONG)
    assert process.returncode == -signal.SIGINT and not output and "Traceback" not in errors
