"""Runs as processes of their own, several at once: one that fails takes no other along."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from experiments.study import Run
from orc_jax import methods
from orc_jax.runtime import metrics
from orc_jax.runtime.signals import Interruption

POLL = 0.5  # seconds between looks at the processes


def is_finished(run: Run) -> bool:
    """Whether a run was trained to its end: its networks, which come last, are there."""
    kept = methods.get(run.config.method.name).positions.kept(
        run.config.method, len(run.config.peers)
    )
    networks = (run.workdir / "networks" / str(peer) / "network.json" for peer in kept)
    records = metrics.read(run.workdir)
    is_last = bool(records) and records[-1]["epoch"] == run.config.epochs
    return is_last and "test" in records[-1] and all(map(os.path.exists, networks))


def gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, found without JAX: it would take their memory."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    return [] if result.returncode else result.stdout.split()


def environments(jobs: int, devices: list[str]) -> list[dict[str, str]]:
    """What each of so many simultaneous jobs has in its environment: its share of the devices.

    Jobs that share a GPU take its memory as they need it, not three quarters each.
    """
    if not devices:
        return [{}] * jobs
    if jobs > len(devices):
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return [shared | {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[i::jobs])} for i in range(jobs)]


class Jobs:
    """The processes of a study.

    Attributes:
      finished: runs that were trained to their end, now or earlier.
      running: runs that are being trained.
      failed: run → what went wrong.
      stopped: the signal that ended it all before its end, or "".
    """

    def __init__(self, runs: list[Run], slots: list[dict[str, str]]):
        self.finished = {run for run in runs if is_finished(run)}
        self.running: list[Run] = []
        self.failed: dict[Run, str] = {}
        self.stopped = ""
        self._slots = dict(enumerate(slots))
        self._waiting = [run for run in runs if run not in self.finished]
        self._processes: dict[int, tuple[Run, subprocess.Popen]] = {}
        self._begins: dict[Run, int] = {}  # of this time's output in the log

    def run(self, on_look: Callable[[], None], on_end: Callable[[Run], None]) -> None:
        """Trains what is not finished.

        Args:
          on_look: called twice a second.
          on_end: called with every run that ended.
        """
        with Interruption() as interruption:
            _hang_up_as_terminate()
            try:
                while not interruption.requested and (self._waiting or self._processes):
                    self._start()
                    time.sleep(POLL)
                    self._collect(on_end)
                    on_look()
            finally:  # after an error too: the terminal may be gone, the disk full
                self.stopped = interruption.requested
                self._end()

    def _end(self):
        """They save a checkpoint; a second Ctrl-C does not wait for that."""
        processes = [process for _, process in self._processes.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.kill()

    def _start(self):
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
        ended = {slot: run for slot, (run, p) in self._processes.items() if p.poll() is not None}
        for slot, run in ended.items():
            _, process = self._processes.pop(slot)
            self.running.remove(run)
            if is_finished(run):
                self.finished.add(run)
            else:
                reason = _reason(run, process.returncode, self._begins[run])
                self.failed[run] = f"{reason} ({log(run)})"
            on_end(run)


def log(run: Run):
    """The file that a run's output goes to; beside the work directory, which is the run's."""
    return run.workdir.with_suffix(".log")


def _process(run, environment) -> subprocess.Popen:
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "orc_jax.main", *run.arguments]
    with log(run).open("a") as file:
        # A session of its own: Ctrl-C is for us, and we tell the others once.
        return subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _reason(run, status, begins) -> str:
    """The error in a run's output of this time, or its last line."""
    output = log(run).read_bytes()[begins:].decode(errors="replace")
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if status < 0:
        return f"killed: {signal.strsignal(-status) or f'signal {-status}'}"
    return (errors or lines or [f"exit status {status}"])[-1].removeprefix("error: ")


def _hang_up_as_terminate():
    """A terminal that is closed ends a study as SIGTERM does, unless that is to be ignored."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
