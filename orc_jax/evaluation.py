"""Networks in eval mode: metrics on the test images, and memories from held-out images."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax.data import stream
from orc_jax.prepare import Setup, restore
from orc_jax.runtime import display, metrics
from orc_jax.state import State
from orc_jax.step import compile_steps, evaluation_batch_size, evaluation_zeros


def evaluate(
    workdir: str | Path, which: str = "last", data: tuple | None = None, data_dir: str = ""
) -> dict:
    """Restore a checkpoint of a run, evaluate every peer and the ensemble, and print the table.

    Args:
      workdir: work directory of the run.
      which: "last", "best" or the step of a checkpoint.
      data: the arrays that the run was trained on, if it was trained on arrays (see `train`).
      data_dir: folder of the data set, if it has moved since the training.

    Returns:
      Top-1 and top-5 accuracy in percent and loss in nats (see `metrics.evaluation`): the numbers
      that the training logged at that step.

    Raises:
      UserError: there is no such run, checkpoint or data.
    """
    setup, state, step = restore(workdir, which, data, data_dir)
    _, evaluation_step, _ = compile_steps(
        setup.config, setup.group, setup.method, streamed=setup.streamed
    )
    test = evaluate_split(setup, evaluation_step, state, setup.test_split)
    title = f"{workdir}, {which} checkpoint (step {step})"
    show_table(setup, title, test, state.promotions.tolist(), step)
    return test


def evaluate_split(
    setup: Setup,
    evaluation_step,
    state: State,
    split,
    check: Callable[[], None] = lambda: None,
) -> dict:
    """Evaluate every peer and the ensembles on a split's images, each counted once.

    Args:
      setup: of the run.
      evaluation_step: of `compile_steps`.
      state: of the networks.
      split: test or validation images, of the setup.
      check: called before every batch; what it raises ends the evaluation.

    Returns:
      See `metrics.evaluation`.
    """
    sums = setup.on_mesh(jax.device_get(evaluation_zeros(setup.group.size, setup.method)))
    for part, index in evaluation_batches(setup, split):
        check()
        before, sums = sums, evaluation_step(state, part, index, sums)
        # One step in flight keeps the devices busy; with more, a signal would wait for them.
        jax.block_until_ready(before)
    return metrics.evaluation(jax.device_get(sums), list(setup.method.ensembles))


def evaluation_batches(setup: Setup, split) -> Iterator[tuple]:
    """Yield the arguments (images, batch index) of evaluation steps that see every image once.

    The images are all images on the devices; or, for images that are streamed, one batch at a time,
    with index 0.
    """
    size = evaluation_batch_size(setup.config, setup.group)
    if isinstance(split, stream.OnDisk):
        for batch in stream.evaluation(split, size, setup.own_rows(size)):
            yield setup.batch_on_mesh(split, *batch), setup.on_mesh(np.int32(0))
        return
    for index in range(-(-len(split.labels) // size)):
        yield split, setup.on_mesh(np.int32(index))


def renewal(setup: Setup, prediction_step) -> Callable[[State], State] | None:
    """Return a function that renews the memory of the method in a state, once an epoch.

    Args:
      setup: of the run.
      prediction_step: of `compile_steps`.

    Returns:
      State → state; None if the method keeps no images aside for a memory.
    """
    split, method, config = setup.held_out_split, setup.method, setup.config.method
    if split is None:
        return None
    size = evaluation_batch_size(setup.config, setup.group)
    count = len(split.labels)

    @partial(jax.jit, out_shardings=setup.everywhere)
    @jax.default_matmul_precision("highest")
    def memory(logits, labels):
        return method.memory.renew(config, jnp.concatenate(logits, axis=1)[:, :count], labels)

    def renew(state):
        logits = [
            prediction_step(state.stacks, split, setup.on_mesh(np.int32(index)))
            for index in range(-(-count // size))
        ]
        return state.replace(method=state.method.replace(memory=memory(logits, split.labels)))

    return renew


def show_table(setup: Setup, title: str, test: dict, promotions: list[int], step: int) -> None:
    """Print the table of peers.

    Args:
      setup: of the run.
      title: line above the table.
      test: of `metrics.evaluation`.
      promotions: number of steps in which each peer was promoted, of length P.
      step: number of steps done.
    """
    roles = setup.method.positions.titles(setup.config.method, setup.group.size)
    shares = [count / max(step, 1) for count in promotions]
    with_top5 = setup.dataset.num_classes > 5
    columns = setup.group.names, roles, setup.num_params, shares
    display.show_peers(title, *columns, test, setup.kept, with_top5)
