"""Several processes that train one group together, with `jax.distributed`.

All of them run the same command on the same files. Only process 0, the main process, prints
progress and writes metrics; all of them write checkpoints.
"""

import itertools
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from orc_jax.errors import UserError

# Seconds after which the other processes notice that one has died.
HEARTBEAT = 30
# Seconds between lines that say for whom a process waits before it begins, and in all.
WAITING, TIMEOUT = 30, 280
# Exit status of a run that SIGTERM has ended with a checkpoint. It is sysexits' EX_TEMPFAIL, "try
# again later", so that a cluster does not count the run as finished.
STOPPED = 75
# Words in the errors that JAX raises when another process has died. Errors without them come from
# this process.
LOST = ("Gloo", "NCCL", "coordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def join(wanted: bool | None) -> None:
    """Join the other processes; call this before anything else of JAX is used.

    JAX finds them by itself under SLURM, Open MPI and Kubernetes. Processes that are started by
    hand need the environment variables JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      wanted: whether to join; None joins if this process is one of several in a SLURM step or an
        Open MPI job, or if JAX_COORDINATOR_ADDRESS is set.

    Raises:
      UserError: the other processes cannot be found or reached.
    """
    by_hand = "JAX_COORDINATOR_ADDRESS" in os.environ
    sizes = [os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    if not (wanted if wanted is not None else by_hand or any(size != "1" for size in sizes)):
        return
    try:
        settings: dict[str, Any] = _by_hand() if by_hand else {}
        if os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1":
            # JAX would give only the first GPU to a machine's only task.
            gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
            settings |= {"local_device_ids": list(range(gpus))} if gpus else {}
        with _waiting(settings):
            jax.distributed.initialize(
                **settings, heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=TIMEOUT + 60
            )
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes are not found ({error}): start them by srun, mpirun or a "
            "Kubernetes job, or give each JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        ) from error


def _by_hand() -> dict[str, int]:
    """Return number and count of the processes, as the environment variables of `join` give them.

    Raises:
      UserError: a variable is wrong.
    """
    address = os.environ["JAX_COORDINATOR_ADDRESS"]
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}, allowed: HOST:PORT of process 0")
    found = {}
    for key, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            raise UserError(f"{name} is {value!r}, allowed: a whole number from 0")
        found[key] = int(value)
    if found["process_id"] >= found["num_processes"]:
        raise UserError(
            f"JAX_PROCESS_ID is {found['process_id']}, allowed: 0 to {found['num_processes'] - 1}, "
            "each once"
        )
    _take_number(address, found["process_id"])
    return found


# JAX aborts a process that has another one's number, with many lines.
_numbers: list[FileLock] = []  # held until this process ends


def _take_number(address: str, number: int) -> None:
    """Check that no other process of this machine has this number in the same run.

    Raises:
      UserError: one has.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = re.sub(r"\W", "_", f"orc_jax_{user}_{address}_{number}")
    lock = FileLock(Path(tempfile.gettempdir()) / f"{name}.lock", blocking=False)
    with suppress(OSError):  # a file system without locks must not stop the run
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process of this machine has JAX_PROCESS_ID={number} for {address}, too"
            ) from error
        _numbers.append(lock)


@contextmanager
def _waiting(settings: dict[str, Any]) -> Iterator[None]:
    """Say from time to time for whom this process waits, while it joins the others.

    It ends with one line if they do not come; JAX would abort it with many a little later.
    """
    since, begin, done = time.strftime("%H:%M:%S"), time.monotonic(), threading.Event()
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "the address that the cluster gives")
    number = settings.get("process_id")
    for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        number = os.environ.get(name) if number is None else number
    others = "process 0" if number not in (None, 0, "0") else "the other processes"

    def say():
        while not done.wait(WAITING):
            place = f"{address}{'' if _is_known(address) else ', a host that is unknown here'}"
            is_over = time.monotonic() - begin > TIMEOUT
            text = f"error: waited since {since}" if is_over else f"waiting since {since}"
            print(f"{text} for {others}, at {place}", file=sys.stderr, flush=True)
            if is_over:
                os._exit(1)

    threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _is_known(address: str) -> bool:
    """Return whether the host of an address can be found, if it is an address."""
    host, _, port = address.rpartition(":")
    try:
        return not host or bool(socket.getaddrinfo(host.strip("[]"), port))
    except OSError:
        return False


def is_main() -> bool:
    """Return whether this is the process that prints progress and writes shared files."""
    return jax.process_index() == 0


def barrier(where: str) -> None:
    """Wait until every process has called this.

    Args:
      where: name of the barrier, the same in all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def broadcast_from_main(value: bool) -> bool:
    """Return the value that the main process gives, in all processes."""
    return bool(multihost_utils.broadcast_one_to_all(value)) if jax.process_count() > 1 else value


def number_from_main(value: int) -> int:
    """Return the number that the main process gives, in all processes.

    Args:
      value: the number, below 2³¹.
    """
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def total(own: int) -> int:
    """Return the sum of what all processes count.

    Args:
      own: what this process counts.
    """
    if jax.process_count() == 1:
        return own
    return int(multihost_utils.process_allgather(np.int32(own)).sum())


# JAX lets the processes end at the same of the points that they have counted.
_points = itertools.count()


def are_stopped() -> bool:
    """Return whether all processes are to end here, because one was sent SIGTERM.

    All processes call this equally often.
    """
    if jax.process_count() == 1:
        return False
    return multihost_utils.reached_preemption_sync_point(next(_points))


def agree(facts: dict[str, Any]) -> None:
    """Check that all processes were started with the same settings and data.

    Args:
      facts: name → value, of JSON.

    Raises:
      UserError: in every process, if values differ. It names the first one.
    """
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    rows = zip(texts, sizes, strict=True)
    found = [json.loads(row[:size].tobytes()) for row, size in rows]
    for name in sorted(set().union(*found)):
        for process, theirs in enumerate(found):
            if theirs.get(name) != found[0].get(name):
                raise UserError(
                    f"the processes differ: {name} is {found[0].get(name)!r} in process 0 and "
                    f"{theirs.get(name)!r} in process {process}"
                )


@contextmanager
def lost_processes_are_named() -> Iterator[None]:
    """Turn the errors that JAX raises when another process has died into a `UserError`."""
    try:
        yield
    except Exception as error:
        # Orbax wraps JAX's error in one of its own when it is raised in its thread.
        is_lost = any(word in str(error) for word in LOST)
        if not jax.distributed.is_initialized() or not is_lost:
            raise
        raise UserError(
            f"process {jax.process_index()} stops, because another process of this run has ended: "
            f"the same command on all of them goes on from the last checkpoint "
            f"({str(error).splitlines()[0]})"
        ) from error


def leave(status: int) -> NoReturn:
    """End this process at once, with this exit status.

    At exit JAX waits for the other processes, which in turn may be waiting for this one. If there
    are several, this one therefore ends without JAX's exit handlers, and the others notice.
    """
    if not jax.distributed.is_initialized():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
