"""Work directories with damaged, lost and foreign files, and on a full disk."""

import errno
import itertools
import json
import os
import resource
import shutil
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
    run_here,
    tiny_config,
    tiny_data,
)
from test_interruptions import held, without_times

import orc_jax
from orc_jax.errors import UserError
from orc_jax.runtime import files, metrics
from orc_jax.runtime.checkpoint_notes import steps
from orc_jax.runtime.checkpoints import Checkpoints
from orc_jax.trained.networks import from_run

DATA = tiny_data()
PER_EPOCH = 3


def config_of(epochs=3):
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = epochs
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory of three epochs, and its last state."""
    workdir = tmp_path_factory.mktemp("damage") / "run"
    return workdir, jax.device_get(orc_jax.train(config_of(), workdir, DATA).state)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "run")


def largest(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a flipped bit": (lambda c: flip(largest(c)), "has changed since it was written"),
    "a file cut off": (lambda c: cut(largest(c)), r"bytes in place of"),
    "an empty file": (lambda c: largest(c).write_bytes(b""), "has 0 bytes in place of"),
    "a lost file": (lambda c: largest(c).unlink(), "is missing"),
    "lost metadata": (lambda c: (c / "state" / "_METADATA").unlink(), "_METADATA is missing"),
    "torn notes": (lambda c: cut(c / "notes.json"), "notes.json is damaged"),
    "an empty folder": (lambda c: (shutil.rmtree(c), c.mkdir()), "state is missing"),
    "a file": (lambda c: (shutil.rmtree(c), c.write_text("?")), "state is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(run, finished, capsys, kind):
    damage, reason = DAMAGE[kind]
    last = run / "checkpoints" / str(3 * PER_EPOCH)
    damage(last)
    content = sorted(p.name for p in last.rglob("*"))
    if kind not in ("an empty folder", "a file"):  # those are passed over
        with pytest.raises(UserError, match=f"{last} is damaged: .*; there is one of step 6"):
            orc_jax.evaluate(run, data=DATA)
    assert orc_jax.evaluate(run, str(2 * PER_EPOCH), data=DATA)["top1"]

    capsys.readouterr()
    result = orc_jax.train(config_of(), run, DATA)
    lines = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    aside = run / "damaged" / last.name
    assert len(lines) == 1 and lines[0].startswith(f"warning: {last} is damaged (")
    assert reason in lines[0] or reason in lines[0].replace("\\", "")
    assert lines[0].endswith(f"it is in {aside} now")
    assert sorted(p.name for p in aside.rglob("*")) == content
    assert_trees_equal(jax.device_get(result.state), finished[1])
    assert without_times(run) == without_times(finished[0])
    assert (run / "roles.csv").read_text() == (finished[0] / "roles.csv").read_text()


def test_without_a_whole_checkpoint_a_run_begins_again(run, finished, capsys):
    for checkpoint in (run / "checkpoints").iterdir():
        flip(largest(checkpoint))
    result = orc_jax.train(config_of(), run, DATA)
    assert "there is no whole checkpoint: the run begins again" in capsys.readouterr().out
    assert_trees_equal(jax.device_get(result.state), finished[1])
    # It still belongs to its config.
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "networks")
    (run / "damaged" / "3").mkdir()
    other = config_of()
    other.seed = 1
    with pytest.raises(UserError, match="belongs to a run with another config"):
        orc_jax.train(other, run, DATA)


def test_stray_files_among_checkpoints_stop_nothing(run, finished):
    for name in ("99", "tmp", "7.orbax-checkpoint-tmp"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "notes.txt").write_text("mine")
    assert orc_jax.evaluate(run, data=DATA)["top1"]
    assert from_run(run).step == 3 * PER_EPOCH
    config = config_of(4)
    result = orc_jax.train(config, run, DATA)
    assert result.finished and int(result.state.step) == 4 * PER_EPOCH
    assert (run / "checkpoints" / "notes.txt").read_text() == "mine"


def test_the_best_checkpoint_needs_no_metrics(run, finished):
    with Checkpoints(run) as checkpoints:
        best, score = checkpoints.step("best"), checkpoints.best_score
    (run / "metrics.jsonl").unlink()
    with Checkpoints(run) as checkpoints:
        assert checkpoints.step("best") == best and checkpoints.best_score == score
    scores = [max(r["test"]["top1"]) for r in metrics.read(finished[0])]
    assert score == max(scores)


def test_checkpoints_of_earlier_versions_have_their_score_in_orbaxs_metrics(run):
    for step, score in ((6, 80.0), (9, 70.0)):
        checkpoint = run / "checkpoints" / str(step)
        (checkpoint / "notes.json").unlink()
        (checkpoint / "metrics").mkdir()
        (checkpoint / "metrics" / "metrics").write_text(json.dumps({"target_top1": score}))
    shutil.rmtree(run / "checkpoints" / "3", ignore_errors=True)
    with Checkpoints(run) as checkpoints:
        assert (checkpoints.step("best"), checkpoints.best_score) == (6, 80.0)


STRANGE = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "blank": lambda path: path.write_text("\n\n"),
    "zeros": lambda path: path.write_bytes(b"\0" * 100 + b"\n"),
    "foreign": lambda path: path.write_text("[1, 2]\n3\nNaN\n{}\n"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\n"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_lost_or_foreign_metrics(run, finished, capsys, kind):
    STRANGE[kind](run / "metrics.jsonl")
    (run / "roles.csv").write_bytes(b"\0\xff\n")
    assert orc_jax.evaluate(run, data=DATA)["top1"]
    with pytest.raises(UserError, match="no peer was evaluated up to this checkpoint"):
        from_run(run)
    result = orc_jax.train(config_of(), run, DATA)
    output = capsys.readouterr().out
    assert "has lost the records of 2 epochs" in output
    assert ("not the record of an epoch" in output) == (kind not in ("lost", "empty"))
    # The record of the last epoch is made again.
    assert without_times(run) == without_times(finished[0])[-1:]
    assert result.metrics["test"] == metrics.read(finished[0])[-1]["test"]
    assert len((run / "roles.csv").read_text().splitlines()) == 3


def test_a_foreign_line_among_the_metrics(run, finished, capsys):
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([text[0], "\0\0\n", "\n", *text[1:], "{"]))
    assert len(metrics.read(run)) == 3
    expected = f"warning: 2 lines of {run / 'metrics.jsonl'} are left out"
    assert capsys.readouterr().out.startswith(expected)
    orc_jax.train(config_of(), run, DATA)
    assert (run / "metrics.jsonl").read_text() == "".join(text)


GARBAGE = [None, b"", b"\0\0", b"[]", b"{", b"\xff", b'{"a": NaN}']
NAMES = ("config.json", "run.json", "data.json")


@pytest.mark.parametrize(
    "name, content",
    # In data.json, {} would be the checksums of other data.
    [*itertools.product(NAMES, GARBAGE), *((name, b"{}") for name in NAMES[:2])],
)
def test_other_files_that_are_lost_or_damaged_are_named(run, name, content):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        orc_jax.evaluate(run, data=DATA)
    with pytest.raises(UserError, match=name):
        orc_jax.train(config_of(), run, DATA)
    for command in ("report", "predict"):
        if name != "data.json":  # they do not look at it
            images = ["x.png"] * (command == "predict")
            result = run_here(command, str(run), *images)
            assert result.returncode == 1 and len(result.stderr.splitlines()) == 1


def held_command(tmp_path, step):
    """A command that trains in `tmp_path`/run, and waits before a step."""
    command = [WITH_TINY, "orc_jax.main", "--config=configs/digits.py:dml:pixels,pixels"]
    changes = ["--config.epochs=2", "--config.data.train_images=256"]
    # The limit is also that of compiled programs.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    return held([*command, *changes], tmp_path, f"held{step}", step, cache)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process's files")
def test_a_disk_that_becomes_full(tmp_path):
    """By a limit on the size of files, whose error is another one of the same kind."""
    for step, number in ((2, signal.SIGTERM), (3, 0)):
        process, go = held_command(tmp_path, step)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
        if number:
            process.send_signal(number)
            time.sleep(1)  # a thread notes it
        go.touch()
        output, _ = process.communicate(timeout=TOO_LONG)
        errors = [line for line in output.splitlines() if not line.startswith("SIGTERM: ")]
        assert process.returncode == 1 and "Traceback" not in output, output
        what = f"{tmp_path}/run/checkpoints/{step + 1} cannot be written: File too large"
        assert errors[-1] == f"error: {what}; there is no checkpoint yet"
    process, go = held_command(tmp_path, 6)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    go.touch()
    output, _ = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert "the same command goes on from the checkpoint of step 4" in output
    assert steps(tmp_path / "run") == [4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize("command", [["models"], ["train", "--help"], []])
def test_standard_output_that_is_full(command):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "orc_jax", *command],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 1
    expected = "error: standard output cannot be written: No space left on device\n"
    assert result.stderr == expected


@pytest.mark.parametrize("unwritable", ["run.json", "metrics.jsonl", "roles.csv", "tensorboard"])
def test_any_file_of_a_run_that_cannot_be_written_is_named(tmp_path, monkeypatch, unwritable):
    real_write = files._write

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(path, mode, text):
        full() if unwritable in path.name else real_write(path, mode, text)

    monkeypatch.setattr(files, "_write", write)
    if unwritable == "tensorboard":
        monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.flush", full)
    with pytest.raises(UserError, match=rf"{unwritable} cannot be written: No space left on dev"):
        orc_jax.train(config_of(), tmp_path / "run", DATA)


def test_a_terminal_without_unicode(tmp_path):
    environment = QUICK | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    preset = "configs/digits.py:dml:pixels,pixels"
    workdir = tmp_path / "run"
    train = ["orc_jax.main", f"--config={preset}", "--config.epochs=1", f"--workdir={workdir}"]
    evaluate = ["orc_jax.evaluate", f"--workdir={workdir}"]
    commands = [[WITH_TINY, *train], [WITH_TINY, *evaluate], ["-m", "orc_jax"]]
    for arguments in (*commands, ["-m", "orc_jax", "train", "--help"]):
        result = run_command(*arguments, env=environment)
        assert result.stdout.isascii() and not result.stderr
        assert "\\x" not in result.stdout and "\\u" not in result.stdout
    refused = run_command(WITH_TINY, *train[:-1], "--config.lr=ä", env=environment, check=False)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1


def test_a_directory_whose_name_is_not_text(tmp_path):
    with pytest.raises(UserError, match=r"the work directory is .*caf\\udce9, allowed: a path in"):
        orc_jax.train(config_of(), tmp_path / "caf\udce9", DATA)
    assert not list(tmp_path.iterdir())


def test_nothing_of_another_program_is_moved(tmp_path):
    theirs = tmp_path / "project" / "checkpoints" / "1000" / "model.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"weights")
    for config in (None, "{}", '{"model_type": "bert"}'):
        if config:
            (tmp_path / "project" / "config.json").write_text(config)
        with pytest.raises(UserError, match=r"config\.json|is not empty and not a work directory"):
            orc_jax.train(config_of(), tmp_path / "project", DATA)
        assert theirs.read_bytes() == b"weights"
        assert not (tmp_path / "project" / "damaged").exists()


def test_what_cannot_be_read_is_not_overwritten_or_set_aside(run, monkeypatch):
    text = (run / "metrics.jsonl").read_text()
    real_text, real_open = Path.read_text, Path.open

    def unreadable(name, real):
        def read(path, *args, **kwargs):
            if path.name == name:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, *args, **kwargs)

        return read

    for name in ("metrics.jsonl", "config.json", "notes.json"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", unreadable(name, real_text))
            with pytest.raises(UserError, match=f"{name} cannot be read: Input/output error"):
                orc_jax.train(config_of(), run, DATA)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", unreadable("_METADATA", real_open))
        with pytest.raises(UserError, match=r"cannot be read: Input/output error"):
            orc_jax.train(config_of(), run, DATA)
    assert (run / "metrics.jsonl").read_text() == text and not (run / "damaged").exists()


def test_roles_outlive_the_metrics(run, finished):
    (run / "metrics.jsonl").unlink()
    orc_jax.train(config_of(), run, DATA)
    assert (run / "roles.csv").read_text() == (finished[0] / "roles.csv").read_text()


def test_files_are_written_whole_through_links_and_to_devices(tmp_path):
    target, link = tmp_path / "file", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    files.write(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    files.write(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == "through"
    for place in (tmp_path, tmp_path / "nowhere" / "file", target / "file"):
        with pytest.raises(UserError, match=f"{place} cannot be written: "):
            files.write(place, "text")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "pipe"}


def test_orbax_leaves_jaxs_count_of_stops_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point", lambda _: 1 / 0
    )
    orc_jax.train(config_of(1), tmp_path / "run", DATA)
    assert steps(tmp_path / "run") == [PER_EPOCH]
