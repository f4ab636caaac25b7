"""The command line, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import QUICK, ROOT, TOO_LONG, WITH_TINY, assert_trees_equal, run_command, run_here

from orc_jax.commands import train
from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoints import Checkpoints

STEPS_PER_EPOCH = 960 // 8  # of the runs that are stopped
TRAIN = ("-m", "orc_jax.main", "--config=configs/digits.py")


def final_state(workdir):
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore_arrays(checkpoints.step("last"))
    return state


def without_times(records):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in records
    ]


def test_digits_command_of_the_readme(tmp_path):
    """The default config, in 5 of its 30 epochs, reaches 90 % top-1, compiles once, and
    evaluates to what it logged. Its pivot is trained first, in one epoch of its own."""
    workdir = tmp_path / "run"
    args = (f"--workdir={workdir}", "--config.epochs=5", "--config.pretrain.epochs=1")
    result = run_command(*TRAIN, *args, env=QUICK | {"JAX_LOG_COMPILES": "1"})
    records = metrics.read(workdir)
    assert len(records) == json.loads((workdir / "config.json").read_text())["epochs"]
    assert max(records[-1]["test"]["top1"][1:]) >= 90
    assert "pivot teacher" in result.stdout and "ensemble" in result.stdout

    # Both steps share the name `step`; one compilation each, for the pivot and for the group.
    log = result.stderr.splitlines()
    compiled = [line for line in log if "Finished XLA compilation of jit(step)" in line]
    assert len(compiled) == 4, compiled

    evaluated = run_command("-m", "orc_jax.evaluate", f"--workdir={workdir}", env=QUICK)
    rows = [line for line in evaluated.stdout.splitlines() if "resnet" in line]
    for row, top1, loss in zip(
        rows, records[-1]["test"]["top1"], records[-1]["test"]["loss"], strict=True
    ):
        assert f"{top1:.2f}" in row and f"{loss:.4f}" in row


def start(*args, **env):
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | QUICK | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def stop_in_epoch_two(workdir, args, number):
    """Starts a run, sends it a signal within its second epoch; returns (exit status, output).

    The run waits there. The first epoch's checkpoint is there as soon as it is whole: Orbax
    renames it then.
    """
    here, go = workdir.parent / "held", workdir.parent / "go"
    hold = str(STEPS_PER_EPOCH * 3 // 2)
    process = start(*args, HOLD=hold, HELD=str(here), GO=str(go))
    wait_for(workdir / "checkpoints" / str(STEPS_PER_EPOCH), process)
    wait_for(here, process)
    process.send_signal(number)
    go.touch()
    output, _ = process.communicate(timeout=TOO_LONG)
    return process.returncode, output


@pytest.mark.parametrize(
    "preset, number",
    [
        ("okddip:pixels,pixels,pixels", signal.SIGKILL),  # has parameters of its own
        ("switokd:resnet8,resnet8", signal.SIGTERM),  # pauses peers
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, preset, number):
    settings = ("--config.epochs=2", "--config.batch_size=8", "--config.seed=3")
    settings = (*settings, "--config.data.train_images=960")
    command = (WITH_TINY, "orc_jax.main", f"--config=configs/digits.py:{preset}", *settings)
    full, workdir = tmp_path / "full", tmp_path / "stopped"
    run_command(*command, f"--workdir={full}", env=QUICK)
    args = (*command, f"--workdir={workdir}")
    status, output = stop_in_epoch_two(workdir, args, number)
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.step("last")
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
        assert step == STEPS_PER_EPOCH
    else:
        assert status == 75 and "Traceback" not in output
        assert f"stopped by {number.name} at step {step}" in output
        assert STEPS_PER_EPOCH < step < 2 * STEPS_PER_EPOCH
    assert len(metrics.read(workdir)) == 1

    if preset.startswith("switokd"):  # the teacher was paused at times, before and after the stop
        for record in metrics.read(full):
            assert 0 < record["train"]["expert/0_1"] < 1

    resumed = run_command(*args, env=QUICK)
    assert f"resumed at step {step}" in resumed.stdout
    assert_trees_equal(final_state(workdir), final_state(full))
    assert without_times(metrics.read(workdir)) == without_times(metrics.read(full))
    assert (workdir / "roles.csv").read_text() == (full / "roles.csv").read_text()


def test_a_work_directory_is_one_processs(tmp_path):
    args = ("-m", "orc_jax.main", "--config=configs/digits.py:ind:resnet8")
    args = (*args, f"--workdir={tmp_path / 'run'}")
    process = start(*args)
    try:
        wait_for(tmp_path / "run" / "config.json", process)
        second = run_command(*args, check=False)
        assert second.returncode == 1
        assert "another process is training in" in second.stderr
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["--config.method.temprature=3"],
            "config.method 'temprature': did you mean 'temperature'",
        ),
        (["--config.peers[9].model=resnet20"], "config.peers has no [9], allowed: 0 to 3"),
        (["--config.method.num_temporary=many"], "num_temporary=many: invalid literal for int()"),
        (["--config=configs/digit.py"], "no such config file: configs/digit.py"),
        (
            ["--config=configs/digit.py", "--config.epochs=1"],
            "no such config file: configs/digit.py",
        ),
        (["--lr=3"], "Unknown command line flag 'lr'"),
        (["train"], "unexpected argument 'train'"),
    ],
)
def test_mistakes_get_one_line(tmp_path, args, message):
    config = "--config=configs/digits.py"
    result = run_here("train", config, f"--workdir={tmp_path / 'run'}", *args)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_a_run(tmp_path):
    for args, message in (
        ([f"--workdir={tmp_path}"], "is not a work directory"),
        ([], "--workdir=… is required"),
    ):
        result = run_here("evaluate", *args)
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and message in result.stderr


def test_several_devices_and_the_default_work_directory(tmp_path):
    """Named after config and method, in the folder where the command runs."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "orc_jax.main"),
            f"--config={ROOT}/configs/digits.py:dml:resnet8,resnet8",
            "--config.epochs=1",
            "--config.data.train_images=640",
        ],
        cwd=tmp_path,
        env=os.environ | QUICK | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "1 × 2 cpu devices" in result.stdout
    (workdir,) = (tmp_path / "runs").iterdir()
    assert workdir.name == "digits-dml-resnet8-resnet8-data.train_images=640-epochs=1"
    assert f"files in runs/{workdir.name}. Next: orc-jax report" in " ".join(result.stdout.split())
    assert metrics.read(workdir)[0]["train"]["top1"][1] > 20


def test_overrides_in_the_name_of_a_work_directory():
    """In any order, made fit for a path, without those that change no result, never too long."""
    name = train.overrides_in_name
    given = ["--config=a.py:dml", "--config.epochs=3", "--config.data.dir=/x", "-config.seed=2"]
    assert name(given) == name(given[::-1]) == "-epochs=3-seed=2"
    assert name(["--config.peers[0].init_from=runs/a b"]) == "-peers_0_.init_from=runs_a_b"
    assert name(["--config=a.py", "--workdir=b", "--config.data.workers=2"]) == ""
    assert name(["--config.epochs", "5", "--config.method.beta=1"]) == "-epochs=5-method.beta=1"
    long = [f"--config.optimizer.decay_epochs=({'1, ' * 60})"]
    assert len(name(long)) == 109 and name(long) != name([long[0].replace("1, 1", "2, 1")])
