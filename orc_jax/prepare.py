"""What a config describes, built: the data on the devices and the group of networks."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from orc_jax import checks, methods, peers
from orc_jax import config as configs
from orc_jax import data as datasets
from orc_jax.data import batches, stream
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.mesh import put_global
from orc_jax.methods.method import Method
from orc_jax.runtime import caches, display, processes
from orc_jax.runtime.checkpoint_notes import has_checkpoint
from orc_jax.runtime.checkpoints import Checkpoints, read_config
from orc_jax.runtime.workdir import Began, began, has_data
from orc_jax.state import State, abstract_state


class Setup(NamedTuple):
    """What a config describes, without weights.

    Attributes:
      config: the whole config, with the networks spelled as in the registry.
      dataset: the data set on the host; its `train` is None in a setup for evaluation.
      images: shape and normalisation of the images.
      own_images: peer → its own normalisation, see `runtime.workdir.Began`.
      method: the method that `config.method` names.
      group: the networks and their mesh.
      train_split: training images on the devices, or files that are streamed; None in a setup for
        evaluation.
      test_split: test images, likewise.
      val_split: images to choose the best checkpoint by, likewise; None without, then the test
        images choose it, and in a setup for evaluation.
      held_out_split: training images that the method keeps aside, or None.
      steps_per_epoch: number of training steps in an epoch.
      num_params: number of parameters of each peer, as the plain network that is saved.
    """

    config: Any
    dataset: datasets.Dataset
    images: Preprocessing
    own_images: dict[int, Preprocessing]
    method: Method
    group: peers.Group
    train_split: batches.OnDevice | stream.OnDisk | None
    test_split: batches.OnDevice | stream.OnDisk
    val_split: batches.OnDevice | stream.OnDisk | None
    held_out_split: batches.OnDevice | None
    steps_per_epoch: int
    num_params: list[int]

    def with_own_images(self, own: dict[int, Preprocessing]) -> "Setup":
        """Return this setup with the normalisation that some peers were trained with before."""
        group = peers.with_own_images(self.group, self.images, own)
        return self._replace(group=group, own_images=own)

    @property
    def kept(self) -> list[int]:
        """Positions of the peers that the training is for."""
        return self.method.positions.kept(self.config.method, self.group.size)

    @property
    def streamed(self) -> bool:
        """Whether images are decoded while they are used, see `Dataset.streamed`."""
        return self.dataset.streamed

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding that puts a copy on every device."""
        return NamedSharding(self.group.mesh, PartitionSpec())

    def on_mesh(self, tree):
        """Put a copy of host arrays on every device.

        Args:
          tree: pytree of arrays, equal in every process.
        """
        return put_global(tree, self.everywhere)

    def batch_on_mesh(self, split: stream.OnDisk, images, labels) -> batches.OnDevice:
        """Put a streamed batch on the devices, split over the mesh axis `data`.

        Args:
          split: the split that the batch is from.
          images, labels: the rows of the batch that `own_rows` gives to this process.
        """
        by_rows = NamedSharding(self.group.mesh, PartitionSpec("data"))
        images, labels = (
            jax.make_array_from_process_local_data(by_rows, rows) for rows in (images, labels)
        )
        return batches.OnDevice(images, labels, split.mean, split.std)

    def own_rows(self, batch_size: int) -> slice:
        """Return the rows of a batch that the devices of this process need."""
        by_rows = NamedSharding(self.group.mesh, PartitionSpec("data"))
        indices = filter(None, by_rows.addressable_devices_indices_map((batch_size,)).values())
        starts, stops, _ = zip(*(rows.indices(batch_size) for (rows,) in indices), strict=True)
        return slice(min(starts), max(stops))

    def state_args(self) -> tuple[Any, peers.Group, Method, tuple[int, int, int]]:
        """Return the arguments that `init_state` and `abstract_state` have in common."""
        return self.config, self.group, self.method, self.dataset.image_shape


def prepare(
    config,
    data: tuple | None = None,
    run: Began | None = None,
    reports: Path | None = None,
) -> Setup:
    """Check a config, load its data and build its group, for training.

    Args:
      config: the whole config, which is not changed.
      data: (train images, train labels, test images, test labels), in place of the data set that
        the config names, see `data.from_arrays`.
      run: what a run that is resumed knows of its images, or None.
      reports: folder for a list of damaged images that is too long to be shown; None for none.

    Returns:
      The setup with training images.

    Raises:
      UserError: something in the config or the data is wrong.
    """
    mesh_shape = checks.check(config, len(jax.devices()), own_data=data is not None)
    config = configs.resolved(config)
    if data is None:
        host = _host(config, reports)
        streamed, bits = (run.streamed, run.images.bits) if run else (None, 0)
        dataset = datasets.load(config, host, streamed, bits)
    else:
        dataset = datasets.from_arrays(data)
    train, val = dataset.train, dataset.val
    if val is None:
        train, val = datasets.hold_out(train, config.data.val_share, config.seed)
    if val is not None and not len(val.labels):
        raise UserError("there are no validation images (data.val_share or a folder of them)")
    train = datasets.subsample(train, config.data.train_images, config.seed)
    dataset = dataset._replace(train=train, val=val)
    held_out_share = methods.get(config.method.name).memory.held_out(config.method)
    train, held_out = datasets.hold_out(dataset.train, held_out_share, config.seed)
    checks.check_data(config, dataset, len(train.labels))
    sample = stream.sample(train, config.data) if dataset.streamed else dataset.train.images
    mean, std = batches.scale(sample)
    resize = config.data.eval_resize
    images = Preprocessing(dataset.image_shape, resize, mean, std, dataset.bits)
    steps_per_epoch = len(train.labels) // config.batch_size
    return _build(config, mesh_shape, dataset, images, steps_per_epoch, train, held_out)


def restore(
    workdir: str | Path, which: str = "last", data: tuple | None = None, data_dir: str = ""
) -> tuple[Setup, State, int]:
    """Build what a run's config describes, for evaluation, and restore a checkpoint of the run.

    No training image is read: the run noted in its work directory what evaluation needs of them.

    Args:
      workdir: work directory of the run.
      which: "last", "best" or the step of a checkpoint.
      data: the arrays that the run was trained on, if it was trained on arrays (see `train`).
      data_dir: folder of the data set, if it has moved since the training.

    Returns:
      The setup without training images, the state, and the step of the checkpoint.

    Raises:
      UserError: there is no such run, checkpoint or data.
    """
    config = read_config(workdir)
    if config.data.name == "arrays" and data is None:
        raise UserError(
            f"{workdir} was trained on arrays from Python: evaluate it there too, with "
            "orc_jax.evaluate(workdir, data=...)"
        )
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} has no checkpoint yet")
    config.micro_batches = 1
    try:
        checks.check(config, len(jax.devices()), own_data=data is not None)
    except UserError:
        config.mesh.data = config.mesh.peer = 1  # it may have been trained on another machine
    if data_dir:
        config.data.dir = data_dir
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.step(which)
        setup = _prepare_test(workdir, config, data)
        return setup, checkpoints.restore(step, abstract_state(*setup.state_args())), step


def _prepare_test(workdir, config, data) -> Setup:
    """Do the same as `prepare` with the test images alone, for a run that has begun."""
    mesh_shape = checks.check(config, len(jax.devices()), own_data=data is not None)
    notes = began(workdir)
    if data is None:
        known = notes.class_names, notes.images, notes.streamed
        dataset = datasets.load_test(config, *known, _host(config))
    else:
        test = datasets.from_arrays(data).test
        dataset = datasets.Dataset(None, test, notes.class_names)
    if not has_data(workdir, dataset):
        raise UserError(f"{workdir} was trained on other images or labels than these")
    steps_per_epoch = notes.train_images // config.batch_size
    setup = _build(config, mesh_shape, dataset, notes.images, steps_per_epoch)
    return setup.with_own_images(notes.own_images)


def sample_and_test(workdir: str | Path, count: int, data_dir: str = "") -> tuple[Any, Any]:
    """Load a sample of a run's training images, and its test images.

    Args:
      workdir: work directory of the run.
      count: size of the sample, at most.
      data_dir: folder of the data set, if it has moved since the training.

    Returns:
      Training images, uint8 [N, H, W, channels]; and the test images, `Images`, or
      `stream.OnDisk` if they are streamed.

    Raises:
      UserError: there is no such data, or it is not what the run was trained on.
    """
    config, notes = read_config(workdir), began(workdir)
    if config.data.name == "arrays":
        raise UserError(f"{workdir} was trained on arrays from Python, which are not kept")
    if data_dir:
        config.data.dir = data_dir
    dataset = datasets.load(config, _host(config), notes.streamed, notes.images.bits)
    if not has_data(workdir, dataset._replace(train=None, val=None)):
        raise UserError(f"{workdir} was trained on other images or labels than these")
    if dataset.streamed:
        sample = stream.sample(dataset.train, config.data, count)
        mean, std = jnp.asarray(notes.images.mean), jnp.asarray(notes.images.std)
        return sample, stream.OnDisk(dataset.test, mean, std, config.data, Counter())
    chosen = np.random.default_rng(0).permutation(len(dataset.train.labels))[:count]
    return dataset.train.images[np.sort(chosen)], dataset.test


def _host(config, reports: Path | None = None) -> datasets.Host:
    """Return what loading data needs of this program."""
    return datasets.Host(
        folder=Path(config.data.cache or caches.directory()),
        reports=reports,
        progress=display.progress,
        say=display.say,
        broadcast=processes.broadcast_from_main,
    )


def _build(
    config, mesh_shape, dataset, images, steps_per_epoch, train=None, held_out=None
) -> Setup:
    """Build the group and put the splits on its mesh.

    Args:
      config, dataset, images, steps_per_epoch: see `Setup`.
      mesh_shape: (data, peer).
      train, held_out: the training images and those kept aside, on the host; None for none.
    """
    devices = np.array(jax.devices()[: mesh_shape[0] * mesh_shape[1]]).reshape(mesh_shape)
    mesh = jax.sharding.Mesh(devices, ("data", "peer"))
    method = methods.get(config.method.name)
    group = peers.build(config, method, dataset.num_classes, steps_per_epoch, mesh)
    num_params = [0] * group.size
    for stack in group.stacks:
        logits, variables = peers.abstract_logits(stack, dataset.image_shape)
        if logits.shape != (1, dataset.num_classes):
            raise UserError(
                f"the network {stack.name!r} gives logits of shape {logits.shape} for an image, "
                f"expected {(1, dataset.num_classes)}, one for each class"
            )
        params = variables["params"]
        for peer in stack.peers:
            num_params[peer] = sum(leaf.size for leaf in jax.tree.leaves(params))

    everywhere = NamedSharding(mesh, PartitionSpec())
    scale = images.mean, images.std

    def place(split):
        if split is None:
            return None
        if dataset.streamed:
            return stream.OnDisk(split, *put_global(scale, everywhere), config.data, Counter())
        return put_global(batches.OnDevice(*split, *scale), everywhere)

    return Setup(
        config=config,
        dataset=dataset,
        images=images,
        own_images={},
        method=method,
        group=group,
        train_split=place(train),
        test_split=place(dataset.test),
        val_split=place(dataset.val),
        held_out_split=place(held_out),
        steps_per_epoch=steps_per_epoch,
        num_params=num_params,
    )
