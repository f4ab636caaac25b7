"""Several processes that train one group together, by `jax.distributed`.

All of them run the same command on the same files. Process 0 alone shows what happens and
writes metrics; a checkpoint is written by all.
"""

import os
import sys
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from orc_jax.errors import UserError

# Seconds until the others know that a process is gone.
HEARTBEAT = 30
# Exit status of processes that were asked to end and have a checkpoint: "try again later", so that
# a cluster does not count the run as finished.
STOPPED = 75
# What is in the errors that tell of a process that is gone; others are of this process itself.
LOST = ("Gloo", "NCCL", "coordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def join(wanted: bool | None) -> None:
    """Joins the other processes, before anything else of JAX is used.

    JAX finds them by itself under SLURM, Open MPI and Kubernetes. By hand, every process has
    JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      wanted: None: if this process is one of several of a SLURM step or an Open MPI job, or
        the three variables are set.

    Raises:
      UserError: the others cannot be found or reached.
    """
    by_hand = "JAX_COORDINATOR_ADDRESS" in os.environ
    sizes = [os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    if not (wanted if wanted is not None else by_hand or any(size != "1" for size in sizes)):
        return
    try:
        given = {}
        if by_hand:
            names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
            given = {key: int(os.environ[name]) for key, name in names.items()}
        if os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1":
            # JAX would give the only task of a machine the first GPU alone.
            gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
            given |= {"local_device_ids": list(range(gpus))} if gpus else {}
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes are not found ({error}): start them by srun, mpirun or a "
            "Kubernetes job, or give each JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        ) from error


def is_main() -> bool:
    """Whether this is the process that shows and writes what all have in common."""
    return jax.process_index() == 0


def barrier(where: str) -> None:
    """Returns when every process is there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def broadcast_from_main(value: bool) -> bool:
    """What process 0 says, in all of them."""
    return bool(multihost_utils.broadcast_one_to_all(value)) if jax.process_count() > 1 else value


def stops_before(step: int) -> bool:
    """Whether the cluster has asked one process to end (SIGTERM), and all do before this step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def lost_processes_are_named():
    """Turns what JAX says when another process has gone into one line: none can go on alone."""
    try:
        yield
    except Exception as error:
        # JAX's error, or what Orbax makes of it in a thread of its own.
        is_lost = any(word in str(error) for word in LOST)
        if jax.process_count() == 1 or not is_lost:
            raise
        raise UserError(
            f"process {jax.process_index()} stops, because another process of this run has ended: "
            f"the same command on all of them goes on from the last checkpoint "
            f"({str(error).splitlines()[0]})"
        ) from error


def leave(status: int) -> None:
    """Ends this process; of several, without waiting for the others as JAX does at its exit.

    They would wait for this one in turn, and this way notice at once.
    """
    if jax.process_count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
