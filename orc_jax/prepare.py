"""What a config builds: data on the devices, and the group of networks."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import checks, methods, peers
from orc_jax import config as configs
from orc_jax import data as datasets
from orc_jax.data import batches, stream
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.mesh import put_global
from orc_jax.runtime import caches, display, processes
from orc_jax.runtime.checkpoints import Checkpoints, has_checkpoint, read_config
from orc_jax.runtime.workdir import began, has_data
from orc_jax.state import State, abstract_state


class Setup(NamedTuple):
    """What a config builds, before any weights.

    Attributes:
      config: the whole config, with the networks' names in the registry's spelling.
      dataset: of its splits, `train` is None where only the test images are wanted.
      images: what the networks' images are like.
      method: that `config.method` names.
      group: the networks and their mesh.
      train_split, test_split: on the devices, or still files; `train_split` is None where only
        the test images are wanted.
      held_out_split: training images that the method keeps aside, or None.
      steps_per_epoch: of the training.
      num_params: of every peer, as the plain network that is kept.
    """

    config: Any
    dataset: datasets.Dataset
    images: Preprocessing
    method: Any
    group: peers.Group
    train_split: batches.OnDevice | stream.OnDisk | None
    test_split: batches.OnDevice | stream.OnDisk
    held_out_split: batches.OnDevice | None
    steps_per_epoch: int
    num_params: list[int]

    @property
    def kept(self) -> list[int]:
        """The peers that the training is for."""
        return self.method.positions.kept(self.config.method, self.group.size)

    @property
    def streamed(self) -> bool:
        """Whether images are read while they are used; see `datasets.Dataset`."""
        return self.dataset.streamed

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


def prepare(config, data: tuple | None = None, streamed: bool | None = None) -> Setup:
    """Checks a config, loads its data and builds its group, for training.

    Args:
      config: the whole config; it is left as it is.
      data: (train images, train labels, test images, test labels) in place of the data
        set that the config names; see `data.from_arrays`.
      streamed: whether a run that goes on streams its images; None: if they do not fit the memory.

    Raises:
      UserError: something in the config or the data is wrong.
    """
    mesh_shape = checks.check(config, len(jax.devices()), own_data=data is not None)
    config = configs.resolved(config)
    if data is None:
        dataset = datasets.load(config, _host(config), streamed)
    else:
        dataset = datasets.from_arrays(data[:2], data[2:])
    dataset = dataset._replace(
        train=datasets.subsample(dataset.train, config.data.train_images, config.seed)
    )
    share = methods.get(config.method.name).memory.held_out(config.method)
    train, held_out = datasets.hold_out(dataset.train, share, config.seed)
    checks.check_data(config, dataset, len(train.labels))
    seen = stream.sample(train, config.data) if dataset.streamed else dataset.train.images
    images = Preprocessing(dataset.image_shape, config.data.eval_resize, *batches.scale(seen))
    steps_per_epoch = len(train.labels) // config.batch_size
    return _build(config, mesh_shape, dataset, images, steps_per_epoch, train, held_out)


def restore(
    workdir: str | Path, which: str = "last", data: tuple | None = None, data_dir: str = ""
) -> tuple[Setup, State, int]:
    """What a run's config builds, for evaluation, with a checkpoint of it.

    No training image is read: what evaluation must know of them, the run has noted.

    Args:
      workdir: of the run.
      which: "last", "best" or the step of a checkpoint.
      data: the arrays that the run was given, if it was given arrays (see `train`).
      data_dir: where the data set is, if not where it was in training.

    Returns:
      The setup without training images, the state, and the checkpoint's step.

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
        setup = _prepare_test(workdir, config, data)
        return setup, checkpoints.restore(step, abstract_state(*setup.state_args())), step


def _prepare_test(workdir, config, data) -> Setup:
    """What `prepare` gives, without training images."""
    mesh_shape = checks.check(config, len(jax.devices()), own_data=data is not None)
    noted = began(workdir)
    if data is None:
        size, host = noted.images.image_shape[0], _host(config)
        dataset = datasets.load_test(config, noted.class_names, size, noted.streamed, host)
    else:
        test = datasets.from_arrays(data[:2], data[2:]).test
        dataset = datasets.Dataset(None, test, noted.class_names)
    if not has_data(workdir, dataset):
        raise UserError(f"{workdir} was trained on other images or labels than these")
    steps_per_epoch = noted.train_images // config.batch_size
    return _build(config, mesh_shape, dataset, noted.images, steps_per_epoch)


def _host(config) -> datasets.Host:
    """This program, for loading data."""
    return datasets.Host(
        folder=Path(config.data.cache or caches.directory()),
        progress=display.progress,
        say=display.say,
        broadcast=processes.broadcast_from_main,
    )


def _build(
    config, mesh_shape, dataset, images, steps_per_epoch, train=None, held_out=None
) -> Setup:
    """The group, and the splits on its mesh: those to train on, kept aside, and to evaluate on."""
    devices = np.array(jax.devices()[: mesh_shape[0] * mesh_shape[1]]).reshape(mesh_shape)
    mesh = jax.sharding.Mesh(devices, ("data", "peer"))
    method = methods.get(config.method.name)
    group = peers.build(config, method, dataset.num_classes, steps_per_epoch, mesh)
    num_params = [0] * group.size
    for stack in group.stacks:
        params = peers.abstract_variables(stack, dataset.image_shape)["params"]
        for peer in stack.peers:
            num_params[peer] = sum(leaf.size for leaf in jax.tree.leaves(params))

    everywhere = NamedSharding(mesh, PartitionSpec())
    scale = images.mean, images.std

    def placed(split):
        if split is None:
            return None
        if dataset.streamed:
            return stream.OnDisk(split, *put_global(scale, everywhere), config.data)
        return put_global(batches.OnDevice(*split, *scale), everywhere)

    return Setup(
        config=config,
        dataset=dataset,
        images=images,
        method=method,
        group=group,
        train_split=placed(train),
        test_split=placed(dataset.test),
        held_out_split=placed(held_out),
        steps_per_epoch=steps_per_epoch,
        num_params=num_params,
    )
