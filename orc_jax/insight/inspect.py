"""Trained networks and images for the figures."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from orc_jax import methods, models, peers, prepare
from orc_jax.data import Images, decode, faults, folder
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.models.network import Network
from orc_jax.runtime.checkpoints import read_config
from orc_jax.trained import networks


class Peer(NamedTuple):
    """A network of a group.

    Attributes:
      title: position, name and role of the peer.
      network: the module; equal networks share one, so that it is compiled once.
      variables: {"params", "batch_stats"}, without auxiliary heads.
      images: preprocessing of its images.
    """

    title: str
    network: Network
    variables: Any
    images: Preprocessing


class Subject(NamedTuple):
    """The networks that figures are drawn of.

    Attributes:
      peers: in the order of the group.
      images: preprocessing of the images, with the shape; a peer may normalise them otherwise.
      class_names: [C], in the order of the outputs.
      test: the test split of the run, or None.
    """

    peers: list[Peer]
    images: Preprocessing
    class_names: tuple[str, ...]
    test: Any = None


class Picture(NamedTuple):
    """An image.

    Attributes:
      name: for titles and file names.
      pixels: uint8 [H, W, channels].
      label: None if it is not known.
    """

    name: str
    pixels: np.ndarray
    label: int | None = None


def of_run(workdir: str | Path, checkpoint: str = "last") -> Subject:
    """Load all peers from a checkpoint of a run, without its test images.

    Args:
      workdir: work directory of the run.
      checkpoint: "last", "best" or the step of a checkpoint.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    trained = networks.from_run(workdir, "ensemble", checkpoint)
    return _subject(trained, _titles(read_config(workdir)))


def of_state(setup: prepare.Setup, state) -> Subject:
    """Take all peers of a run from its state, with the test images; see `prepare.restore`."""
    stacks, layout = jax.device_get(state.stacks), setup.group.stacks
    variables = [peers.plain_variables(layout, stacks, i) for i in range(setup.group.size)]
    names = list(setup.dataset.class_names)
    images = [setup.own_images.get(i, setup.images) for i in range(setup.group.size)]
    trained = networks.TrainedNetworks(setup.group.names, variables, names, images)
    return _subject(trained, _titles(setup.config), setup.dataset.test)


def _titles(config):
    roles = methods.get(config.method.name).positions.titles(config.method, len(config.peers))
    numbered = enumerate(zip(config.peers, roles, strict=True))
    return [f"{i} {peer.model}, {role}" for i, (peer, role) in numbered]


def of_network(directory: str | Path) -> Subject:
    """Load a saved network as the only peer, see `networks.from_saved`."""
    trained = networks.from_saved(directory)
    return _subject(trained, trained.networks)


def _subject(trained, titles, test=None):
    modules = {name: models.create(name, len(trained.class_names)) for name in trained.networks}
    members = zip(titles, trained.networks, trained.variables, trained.images, strict=True)
    return Subject(
        peers=[Peer(title, modules[name], *rest) for title, name, *rest in members],
        images=trained.images[0],
        class_names=tuple(trained.class_names),
        test=test,
    )


def pictures(images: list[str], subject: Subject) -> list[Picture]:
    """Load images from files, from folders, or from the test split.

    Args:
      images: paths of files and folders, `test:INDEX` or `test:FIRST-LAST`.
      subject: networks, with the preprocessing of their images and the test split.

    Raises:
      UserError: there is no such file or index, or a file is not an image.
    """
    loaded: list[Picture] = []
    for name in images:
        if bounds := re.fullmatch(r"test:(\d+)(?:-(\d+))?", name):
            first, last = int(bounds[1]), int(bounds[2] or bounds[1])
            if first > last:
                raise UserError(f"{name} has no image, allowed: test:FIRST-LAST, as in test:0-7")
            if subject.test is not None:
                _check_index(subject, last)  # before any image is decoded
            loaded += [of_test(subject, index) for index in range(first, last + 1)]
        elif Path(name).is_dir():
            loaded += [_of_file(subject, Path(path)) for path in folder.images_below(name)]
        else:
            loaded.append(_of_file(subject, Path(name)))
    if not loaded:
        raise UserError(f"--images={','.join(images)} has no image file")
    return loaded


def of_test(subject: Subject, index: int) -> Picture:
    """Load an image of the test split.

    Raises:
      UserError: there is no test split or no such image, or the image is damaged.
    """
    test = subject.test
    if test is None:
        raise UserError(f"test:{index} is an image of a run: give --workdir, or image files")
    _check_index(subject, index)
    if isinstance(test, Images):
        pixels = test.images[index]
    else:
        try:
            pixels = _decoded(subject, test.file(index))
        except faults.FAULTS as error:
            raise UserError(f"test:{index}: {faults.reason(test.name(index), error)}") from error
    return Picture(f"test-{index}", pixels, int(test.labels[index]))


def _decoded(subject, file):
    images = subject.images
    size, _, channels = images.image_shape
    return decode.decode(file, size, images.resize, channels, images.bits)


def _check_index(subject, index):
    count = len(subject.test.labels)
    if index >= count:
        raise UserError(f"test:{index} is not there, allowed: test:0 to test:{count - 1}")


def _of_file(subject, path):
    if not decode.come_from_files(subject.images.image_shape):
        raise UserError(
            "images of {}×{} pixels and {} channels do not come from files: "
            "give test:FIRST-LAST in place of {}".format(*subject.images.image_shape, path)
        )
    try:
        return Picture(folder.printable(path.stem), _decoded(subject, path))
    except faults.FAULTS as error:
        raise UserError(
            f"{folder.printable(str(path))} cannot be decoded: {faults.reason(str(path), error)}"
        ) from error
