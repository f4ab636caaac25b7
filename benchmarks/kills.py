"""Kill runs at random moments, go on with them, and compare them with runs that nobody killed.

    python -m benchmarks.kills --kills=60

Three runs take turns: one with its images in memory, one whose images are read by two worker
processes, and one of two processes, of which one is killed before the other. A kill comes at any
time from the first import on. In the end every run must have the same weights, to the bit, and the
same metrics as its twin that ran undisturbed, and no process may be left.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoints import Checkpoints

KILLS = flags.DEFINE_integer("kills", 60, "Number of kills, of all runs together.")
SEED = flags.DEFINE_integer("seed", 0, "Source of the moments.")
KEEP = flags.DEFINE_string(
    "keep", "", "Folder in which the runs are left (default: a temporary one)."
)

LONGEST = 9.0  # seconds from the start to a kill


def images(root: Path) -> None:
    """Write two classes of small images that differ in brightness."""
    random_bits = np.random.default_rng(0)
    for split, count in (("train", 256), ("val", 64)):
        for label, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random_bits.integers(60 * label, 160 + 60 * label, (16, 16, 3))
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(root / split / name / f"{i}.png")


def commands(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Return name → number of processes and command, without its work directory."""
    files = {"dir": folder / "images", "size": 16, "memory": 0, "cache": folder / "cache"}
    streamed = [f"--config.data.{key}={value}" for key, value in files.items()]
    digits = ["--config=configs/digits.py:orc_peers:resnet8,resnet8", "--config.epochs=12"]
    small = ["--config.batch_size=32", "--config.eval_batch_size=64"]
    photos = ["--config=configs/folder.py:dml:resnet8,resnet8", *streamed, *small]
    return {
        "in memory": (1, digits),
        "streamed": (1, [*photos, "--config.data.workers=2", "--config.epochs=8"]),
        "two processes": (2, [*photos, "--config.epochs=8"]),
    }


def start(count: int, command: list[str], workdir: Path, log: Path) -> list[subprocess.Popen]:
    """Start the processes of a run, each in a session of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    started = []
    for i in range(count):
        own = several | {"JAX_PROCESS_ID": str(i)} if count > 1 else {}
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "orc_jax.main", *command, f"--workdir={workdir}"],
                env=os.environ | own,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started.append(process)
    return started


def wait(started: list[subprocess.Popen], seconds: float | None = None) -> bool:
    """Wait for the end of all processes; return whether they ended in time."""
    end = time.monotonic() + seconds if seconds is not None else float("inf")
    while time.monotonic() < end:
        if all(process.poll() is not None for process in started):
            return True
        time.sleep(0.01)
    return False


def compare(workdir: Path, twin: Path) -> None:
    """Check that two runs have the same weights and metrics.

    Raises:
      AssertionError: they have not.
    """
    found = []
    for run in (workdir, twin):
        with Checkpoints(run) as checkpoints:
            step = checkpoints.step("last")
            assert step is not None
            found.append((step, checkpoints.restore_arrays(step)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    records = [metrics.read(run) for run in (workdir, twin)]
    for record in (*records[0], *records[1]):
        del record["seconds"], record["images_per_second"]
    assert records[0] == records[1], "the metrics differ"
    assert (workdir / "roles.csv").read_text() == (twin / "roles.csv").read_text()
    assert not (workdir / "damaged").exists(), "a checkpoint was damaged"


def left_over(folder: Path) -> list[str]:
    """Return the command lines of processes that still work for the runs in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"KILLS={folder}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def campaign(folder: Path) -> None:
    """Kill and compare, until there were as many kills as asked for and every run has ended."""
    os.environ["KILLS"] = str(folder)
    images(folder / "images")
    moments, shared = random.Random(SEED.value), set(Path("/dev/shm").glob("*"))
    runs, twins, done, killed = commands(folder), {}, 0, dict.fromkeys(commands(folder), 0)
    for name, (count, command) in runs.items():
        twins[name] = folder / f"{name} undisturbed".replace(" ", "-")
        started = start(count, command, twins[name], folder / "log")
        assert wait(started) and not any(process.returncode for process in started), folder / "log"
        print(f"{name}: ran undisturbed", flush=True)
    round_of = dict.fromkeys(runs, 0)
    while done < KILLS.value:
        for name, (count, command) in runs.items():
            workdir = folder / f"{name} {round_of[name]}".replace(" ", "-")
            log = workdir.with_suffix(".log")
            started = start(count, command, workdir, log)
            if done < KILLS.value and not wait(started, moments.uniform(0, LONGEST)):
                order = moments.sample(started, count)
                order[0].kill()
                done, killed[name] = done + 1, killed[name] + 1
                # JAX takes a while to notice that another process is gone: wait for it once.
                if killed[name] > 1 and not wait(order, moments.uniform(0, 1)):
                    order[-1].kill()
            wait(started)
            if not any(process.returncode for process in started):
                compare(workdir, twins[name])
                round_of[name] += 1
                print(f"{name}: {killed[name]} kills, run {round_of[name]} equal", flush=True)
    for name, (count, command) in runs.items():
        workdir = folder / f"{name} {round_of[name]}".replace(" ", "-")
        started = start(count, command, workdir, workdir.with_suffix(".log"))
        assert wait(started) and not any(process.returncode for process in started), workdir
        compare(workdir, twins[name])
        print(f"{name}: {killed[name]} kills, run {round_of[name] + 1} equal", flush=True)
    time.sleep(2)
    assert not left_over(folder), left_over(folder)
    assert set(Path("/dev/shm").glob("*")) <= shared, "shared memory is left"
    for log in folder.glob("*.log"):
        assert "Traceback" not in log.read_text() or "two" in log.name, log
    print(f"{done} kills: every run has the weights and metrics of its undisturbed twin")


def main(_) -> None:
    """Run the campaign in a temporary folder, which is kept if a run differs."""
    logging.set_verbosity(logging.WARNING)  # of Orbax
    folder = Path(KEEP.value or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    print(f"files in {folder}", flush=True)
    campaign(folder)
    if not KEEP.value:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
