"""Numbers of trained networks: top-1, top-5 and loss on the test images."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from orc_jax.data import stream
from orc_jax.prepare import Setup, restore
from orc_jax.runtime import display, metrics
from orc_jax.step import compile_steps, evaluation_batch_size, evaluation_zeros


def evaluate(
    workdir: str | Path, which: str = "last", data: tuple | None = None, data_dir: str = ""
) -> dict:
    """Restores a checkpoint of a run and evaluates every peer and the ensemble.

    Args and raises: see `prepare.restore`.

    Returns:
      top-1, top-5 and loss, the same numbers that training logged at that step.
    """
    setup, state, step = restore(workdir, which, data, data_dir)
    _, evaluation_step, _ = compile_steps(
        setup.config, setup.group, setup.method, streamed=setup.streamed
    )
    test = evaluate_split(setup, evaluation_step, state.stacks)
    title = f"{workdir}, {which} checkpoint (step {step})"
    show_table(setup, title, test, state.promotions.tolist(), step)
    return test


def evaluate_split(setup: Setup, evaluation_step, stacks) -> dict:
    """Test metrics of every peer and of the ensemble, each image counted once."""
    sums = setup.on_mesh(jax.device_get(evaluation_zeros(setup.group.size)))
    for split, index in evaluation_batches(setup):
        sums = evaluation_step(stacks, split, index, sums)
    return metrics.evaluation(jax.device_get(sums))


def evaluation_batches(setup: Setup) -> Iterator[tuple]:
    """(split, index) for the evaluation step: every test image once."""
    split, size = setup.test_split, evaluation_batch_size(setup.config, setup.group)
    if setup.streamed:
        for batch in stream.evaluation(split, size, setup.own_rows(size)):
            yield setup.batch_on_mesh(split, *batch), setup.on_mesh(np.int32(0))
        return
    for index in range(-(-len(split.labels) // size)):
        yield split, setup.on_mesh(np.int32(index))


def show_table(setup: Setup, title: str, test: dict, promotions: list[int], step: int) -> None:
    """Prints the table of peers.

    Args:
      setup, title: of the run.
      test: `metrics.evaluation`.
      promotions: [P] steps in which each peer was promoted, of `step` steps.
      step: steps done.
    """
    roles = setup.method.positions.titles(setup.config.method, setup.group.size)
    shares = [count / max(step, 1) for count in promotions]
    display.show_peers(title, setup.group.names, roles, setup.num_params, shares, test, setup.kept)
