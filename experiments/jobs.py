"""Runs of a study, each in a process of its own, so that one that fails does not end the others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from experiments.study import Run
from orc_jax import methods
from orc_jax.runtime import metrics
from orc_jax.runtime.signals import Interruption

POLL = 0.5  # seconds between checks of the processes


def is_finished(run: Run) -> bool:
    """Return whether a run was trained to its end and its networks, which come last, were saved."""
    kept = methods.get(run.config.method.name).positions.kept(
        run.config.method, len(run.config.peers)
    )
    networks = (run.workdir / "networks" / str(peer) / "network.json" for peer in kept)
    records = metrics.read(run.workdir)
    is_last = bool(records) and records[-1]["epoch"] == run.config.epochs
    return is_last and "test" in records[-1] and all(map(os.path.exists, networks))


def gpus() -> list[str]:
    """List the names of this machine's NVIDIA GPUs.

    JAX is not asked, because it would allocate their memory.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    return [] if result.returncode else result.stdout.split()


def environments(jobs: int, devices: list[str]) -> list[dict[str, str]]:
    """Share the devices out among simultaneous jobs.

    Jobs that share a GPU allocate its memory as they need it; by default JAX would allocate three
    quarters of it for each.

    Args:
      jobs: number of simultaneous jobs.
      devices: names of the GPUs.

    Returns:
      The environment variables of each job.
    """
    if not devices:
        return [{}] * jobs
    if jobs > len(devices):
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return [shared | {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[i::jobs])} for i in range(jobs)]


class Jobs:
    """The processes of a study.

    Args:
      runs: all runs of the study, a teacher before the runs that need it.
      slots: environment variables of each simultaneous process, see `environments`.

    Attributes:
      finished: runs that were trained to their end, now or earlier.
      running: runs that are being trained.
      failed: run → reason.
      stopped: name of the signal that stopped the study, or "".
    """

    def __init__(self, runs: list[Run], slots: list[dict[str, str]]):
        self.finished = {run for run in runs if is_finished(run)}
        self.running: list[Run] = []
        self.failed: dict[Run, str] = {}
        self.stopped = ""
        self._slots = dict(enumerate(slots))
        self._waiting = [run for run in runs if run not in self.finished]
        self._processes: dict[int, tuple[Run, subprocess.Popen]] = {}
        self._begins: dict[Run, int] = {}  # position in the log where the process's output begins

    def run(self, on_poll: Callable[[], None], on_end: Callable[[Run], None]) -> None:
        """Train the runs that are not finished.

        Args:
          on_poll: called twice a second.
          on_end: called with every run that ended.
        """
        with Interruption(hang_up=True, again=self._kill) as interruption:
            try:
                while not interruption.requested and (self._waiting or self._processes):
                    self._start()
                    time.sleep(POLL)
                    self._collect(on_end)
                    on_poll()
            finally:  # also after an error: the terminal may be gone or the disk full
                self.stopped = interruption.requested
                self._end()

    def _end(self):
        """Terminate all processes, which save a checkpoint; a second Ctrl-C kills them."""
        processes = [process for _, process in self._processes.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        finally:
            self._kill()

    def _kill(self):
        for _, process in list(self._processes.values()):
            process.kill()

    def _start(self):
        """Start runs whose teachers are trained, as many as there are free slots."""
        for run in [run for run in self._waiting if run.teacher in self.failed]:
            self._waiting.remove(run)
            self.failed[run] = f"{run.teacher.name} failed"
        ready = [run for run in self._waiting if run.teacher in {None, *self.finished}]
        free = [slot for slot in self._slots if slot not in self._processes]
        for slot, run in zip(free, ready, strict=False):
            self._waiting.remove(run)
            self.running.append(run)
            self._begins[run] = log(run).stat().st_size if log(run).exists() else 0
            self._processes[slot] = (run, _process(run, self._slots[slot]))

    def _collect(self, on_end):
        """Take note of the processes that have ended."""
        for slot, (run, process) in list(self._processes.items()):
            if process.poll() is None:
                continue
            del self._processes[slot]
            self.running.remove(run)
            if is_finished(run):
                self.finished.add(run)
            else:
                reason = _reason(run, process.returncode, self._begins[run])
                self.failed[run] = f"{reason} ({log(run)})"
            on_end(run)


def log(run: Run) -> Path:
    """Return the file for the output of a run, beside its work directory."""
    return run.workdir.with_suffix(".log")


def _process(run, environment) -> subprocess.Popen:
    """Start the process of a run."""
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "orc_jax.main", *run.arguments]
    with log(run).open("a") as file:
        # In a session of its own a process does not get Ctrl-C, but one SIGTERM from us.
        return subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _reason(run, status, begins) -> str:
    """Return the error in the output of a process, or the last line of it."""
    output = log(run).read_bytes()[begins:].decode(errors="replace")
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if status < 0:
        return f"killed: {signal.strsignal(-status) or f'signal {-status}'}"
    return (errors or lines or [f"exit status {status}"])[-1].removeprefix("error: ")
