"""What a config builds, and the evaluation of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import config as configs
from orc_jax import data as datasets
from orc_jax import methods, models, peers
from orc_jax.data import batches, stream
from orc_jax.errors import UserError
from orc_jax.mesh import put_global
from orc_jax.runtime import display, metrics
from orc_jax.runtime.checkpoints import Checkpoints, has_checkpoint, read_config
from orc_jax.runtime.workdir import fingerprint
from orc_jax.state import State, abstract_state, streams
from orc_jax.step import compile_steps, evaluation_batch_size, evaluation_zeros


class Setup(NamedTuple):
    """What a config builds, before any weights.

    Attributes:
      train_split, test_split: on the devices, or still files.
      held_out_split: training images that the method keeps aside.
      num_params: of every peer, as the plain network that is kept.
    """

    config: Any
    dataset: datasets.Dataset
    method: Any
    group: peers.Group
    train_split: batches.OnDevice | stream.OnDisk
    test_split: batches.OnDevice | stream.OnDisk
    held_out_split: batches.OnDevice | None
    steps_per_epoch: int
    num_params: list[int]

    @property
    def kept(self) -> list[int]:
        """The peers that the training is for."""
        return self.method.positions.kept(self.config.method, self.group.size)

    @property
    def images(self) -> dict:
        """What its networks must be given: images of "image_shape", of files scaled to "resize"
        before their centre is taken, and normalised by "mean" and "std"."""
        return {
            "image_shape": self.dataset.image_shape,
            "resize": self.config.data.eval_resize,
            "mean": self.test_split.mean.tolist(),
            "std": self.test_split.std.tolist(),
        }

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.group.mesh, PartitionSpec())

    def on_mesh(self, tree):
        """A copy of host arrays on every device."""
        return put_global(tree, self.everywhere)

    def batch_on_mesh(self, split: stream.OnDisk, images, labels) -> batches.OnDevice:
        """A batch split over the devices, from the rows of it that this process has read."""
        by_rows = NamedSharding(self.group.mesh, PartitionSpec("data"))
        rows = jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(by_rows, x), (images, labels)
        )
        return batches.OnDevice(*rows, split.mean, split.std)

    def own_rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process's devices need."""
        by_rows = NamedSharding(self.group.mesh, PartitionSpec("data"))
        parts = by_rows.addressable_devices_indices_map((batch_size,)).values()
        starts, stops, _ = zip(*(rows.indices(batch_size) for (rows,) in parts), strict=True)
        return slice(min(starts), max(stops))

    def state_args(self):
        """The arguments that `init_state` and `abstract_state` share."""
        return self.config, self.group, self.method, self.dataset.image_shape


def prepare(config, data: tuple | None = None) -> Setup:
    """Checks a config, loads its data and builds its group.

    The config of the result is a copy with networks' and classes' names filled in.

    Args:
      config: the whole config.
      data: (train images, train labels, test images, test labels) in place of the data
        set that the config names; see `data.from_arrays`.

    Raises:
      UserError: something in it is wrong.
    """
    config = config.copy_and_resolve_references()
    shape = configs.check(config, len(jax.devices()), own_data=data is not None)
    dataset = datasets.load(config) if data is None else datasets.from_arrays(data[:2], data[2:])
    dataset = dataset._replace(
        train=datasets.subsample(dataset.train, config.data.train_images, config.seed)
    )
    config.data.class_names = dataset.class_names
    if config.data.pad >= min(dataset.image_shape[:2]):
        raise UserError(
            f"data.pad is {config.data.pad}, allowed: less than the images' size, "
            f"{dataset.image_shape[0]}×{dataset.image_shape[1]}"
        )
    for i, peer in enumerate(config.peers):
        smallest = models.entry(peer.model).smallest
        if min(dataset.image_shape[:2]) < smallest:
            height, width, _ = dataset.image_shape
            raise UserError(
                f"peers[{i}].model is {peer.model}, which needs images of {smallest}×{smallest} "
                f"pixels or more; these are {height}×{width}"
            )
    method = methods.get(config.method.name)
    streamed = config.data.streamed = not isinstance(dataset.train, datasets.Images)
    if streamed and method.memory.held_out(config.method):
        raise UserError(
            f"{config.method.name} {config.method.target} keeps images aside, which must fit "
            f"data.memory, {config.data.memory} of the device's"
        )
    if streamed and config.data.resized_crop and method.needs.own_augmentation:
        raise UserError(
            f"every peer of {config.method.name} sees other parts of an image (data.resized_crop): "
            f"they must fit data.memory, {config.data.memory} of the device's"
        )
    train, held_out = datasets.hold_out(
        dataset.train, method.memory.held_out(config.method), config.seed
    )
    steps_per_epoch = len(train.labels) // config.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"batch_size is {config.batch_size}, allowed: at most the "
            f"{len(train.labels)} training images"
        )
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("data", "peer"))
    group = peers.build(config, method, dataset.num_classes, steps_per_epoch, mesh)
    num_params = [0] * group.size
    for stack in group.stacks:
        params = peers.abstract_variables(stack, dataset.image_shape)["params"]
        for peer in stack.peers:
            num_params[peer] = sum(leaf.size for leaf in jax.tree.leaves(params))
    everywhere = NamedSharding(mesh, PartitionSpec())
    scale = batches.scale(stream.sample(train, config.data) if streamed else dataset.train.images)
    if streamed:
        train_split, test_split = (
            stream.OnDisk(files, *put_global(scale, everywhere), config.data)
            for files in (train, dataset.test)
        )
        held_out_split = None
    else:
        train_split, test_split, held_out_split = (
            split and put_global(batches.OnDevice(*split, *scale), everywhere)
            for split in (train, dataset.test, held_out)
        )
    return Setup(
        config=config,
        dataset=dataset,
        method=method,
        group=group,
        train_split=train_split,
        test_split=test_split,
        held_out_split=held_out_split,
        steps_per_epoch=steps_per_epoch,
        num_params=num_params,
    )


def restore(
    workdir: str | Path, which: str = "last", data: tuple | None = None, data_dir: str = ""
) -> tuple[Setup, State, int]:
    """What a run's config builds, a checkpoint of it, and the checkpoint's step.

    Args:
      workdir: of the run.
      which: "last", "best" or the step of a checkpoint.
      data: the arrays that the run was given, if it was given arrays (see `train`).
      data_dir: where the data set is, if not where it was in training.

    Raises:
      UserError: no such run, checkpoint or data.
    """
    config = read_config(workdir)
    if config.data.name == "arrays" and data is None:
        raise UserError(
            f"{workdir} was trained on arrays from Python: evaluate it there too, with "
            "orc_jax.evaluate(workdir, data=...)"
        )
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} has no checkpoint yet")
    devices = len(jax.devices())
    asked = max(1, config.mesh.data) * max(1, config.mesh.peer)
    if asked > devices or config.batch_size % devices:
        config.mesh.data = config.mesh.peer = 1  # trained on another machine
    if data_dir:
        config.data.dir = data_dir
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.step(which)
        setup = prepare(config, data)
        if json.loads((Path(workdir) / "data.json").read_text()) != fingerprint(setup.dataset):
            raise UserError(f"{workdir} was trained on other images or labels than these")
        return setup, checkpoints.restore(step, abstract_state(*setup.state_args())), step


def evaluate(
    workdir: str | Path, which: str = "last", data: tuple | None = None, data_dir: str = ""
) -> dict:
    """Restores a checkpoint of a run and evaluates every peer and the ensemble.

    Args and raises: see `restore`.

    Returns:
      top-1, top-5 and loss, the same numbers that training logged at that step.
    """
    setup, state, step = restore(workdir, which, data, data_dir)
    _, evaluation_step, _ = compile_steps(setup.config, setup.group, setup.method)
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


def training_batches(setup: Setup, step: int) -> Iterator[tuple]:
    """(split, order) for the train step, from this step on to the last one.

    The split is all images on the devices and the order that of the epoch; or, for images
    that are streamed, the split is one batch, in the order in which it came.
    """
    config, split = setup.config, setup.train_split
    last, shape = config.epochs * setup.steps_per_epoch, (setup.steps_per_epoch, config.batch_size)
    if isinstance(split, stream.OnDisk):
        order = setup.on_mesh(np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape))
        rows = setup.own_rows(config.batch_size)
        for batch in stream.training(
            split, config.seed, config.batch_size, config.epochs, step, rows
        ):
            yield setup.batch_on_mesh(split, *batch), order
        return
    epoch_order = jax.jit(
        batches.epoch_order, static_argnums=(2, 3), out_shardings=setup.everywhere
    )
    key, count = streams(config.seed)[1], len(split.labels)
    for at in range(step, last):
        if at == step or at % shape[0] == 0:
            epoch = setup.on_mesh(np.int32(at // shape[0]))
            order = epoch_order(key, epoch, count, config.batch_size)
        yield split, order


def evaluation_batches(setup: Setup) -> Iterator[tuple]:
    """(split, index) for the evaluation step: every test image once."""
    split, size = setup.test_split, evaluation_batch_size(setup.config, setup.group)
    if isinstance(split, stream.OnDisk):
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
