"""What figures show: trained networks, and images as these networks see them."""

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
    """A network to look at.

    Attributes:
      title: its position, name and role.
      network: the very same module for equal networks, so that it is compiled once.
      variables: {"params", "batch_stats"} of the plain network.
    """

    title: str
    network: Network
    variables: Any


class Subject(NamedTuple):
    """Networks, and images for them.

    Attributes:
      peers: in the order of the group.
      images: what images must be like.
      class_names: in the order of their indices.
      test: the run's test split, if it is at hand.
    """

    peers: list[Peer]
    images: Preprocessing
    class_names: tuple[str, ...]
    test: Any = None


class Picture(NamedTuple):
    """An image [H, W, channels] uint8 with its name, and its label if that is known."""

    name: str
    pixels: np.ndarray
    label: int | None = None


def of_run(workdir: str | Path, checkpoint: str = "last") -> Subject:
    """All peers of a run's checkpoint, without its data; see `networks.from_run`."""
    chosen = networks.from_run(workdir, "ensemble", checkpoint)
    return _subject(chosen, _titles(read_config(workdir)))


def of_state(setup: prepare.Setup, state) -> Subject:
    """All peers of a run, with its test images; see `prepare.restore`."""
    stacks, layout = jax.device_get(state.stacks), setup.group.stacks
    variables = [peers.plain_variables(layout, stacks, i) for i in range(setup.group.size)]
    names = setup.dataset.class_names
    chosen = networks.TrainedNetworks(setup.group.names, variables, names, setup.images)
    return _subject(chosen, _titles(setup.config), setup.dataset.test)


def _titles(config):
    roles = methods.get(config.method.name).positions.titles(config.method, len(config.peers))
    named = enumerate(zip(config.peers, roles, strict=True))
    return [f"{i} {peer.model}, {role}" for i, (peer, role) in named]


def of_network(directory: str | Path) -> Subject:
    """A saved network by itself, see `networks.from_saved`."""
    chosen = networks.from_saved(directory)
    return _subject(chosen, chosen.networks)


def _subject(chosen, titles, test=None):
    modules = {name: models.create(name, len(chosen.class_names)) for name in chosen.networks}
    members = zip(titles, chosen.networks, chosen.variables, strict=True)
    return Subject(
        peers=[Peer(title, modules[name], variables) for title, name, variables in members],
        images=chosen.images,
        class_names=tuple(chosen.class_names),
        test=test,
    )


def pictures(images: list[str], subject: Subject) -> list[Picture]:
    """The images asked for: files, folders, or `test:FIRST-LAST` of the test split.

    Raises:
      UserError: there is no such file or index, or a file is no image.
    """
    found = []
    for name in images:
        if chosen := re.fullmatch(r"test:(\d+)(?:-(\d+))?", name):
            first, last = int(chosen[1]), int(chosen[2] or chosen[1])
            if first > last:
                raise UserError(f"{name} has no image, allowed: test:FIRST-LAST, as in test:0-7")
            if subject.test is not None:
                _is_there(subject, last)  # before others are decoded
            found += [of_test(subject, at) for at in range(first, last + 1)]
        elif Path(name).is_dir():
            found += [_of_file(subject, Path(path)) for path in folder.images_below(name)]
        else:
            found.append(_of_file(subject, Path(name)))
    if not found:
        raise UserError(f"--images={','.join(images)} has no image ({', '.join(folder.SUFFIXES)})")
    return found


def of_test(subject: Subject, at: int) -> Picture:
    """The test image at this place (`UserError` if there is none, or it is damaged)."""
    test = subject.test
    if test is None:
        raise UserError(f"test:{at} is an image of a run: give --workdir, or image files")
    _is_there(subject, at)
    if isinstance(test, Images):
        pixels = test.images[at]
    else:
        size, _, channels = subject.images.image_shape
        try:
            pixels = decode.decode(test.file(at), size, subject.images.resize, channels)
        except faults.FAULTS as error:
            raise UserError(f"test:{at}: {faults.reason(test.name(at), error)}") from error
    return Picture(f"test-{at}", pixels, int(test.labels[at]))


def _is_there(subject, at):
    count = len(subject.test.labels)
    if at >= count:
        raise UserError(f"test:{at} is not there, allowed: test:0 to test:{count - 1}")


def _of_file(subject, path):
    size, width, channels = subject.images.image_shape
    if not decode.come_from_files(subject.images.image_shape):
        raise UserError(
            f"images of {size}×{width} pixels and {channels} channels do not come from files: "
            f"give test:FIRST-LAST in place of {path}"
        )
    try:
        return Picture(path.stem, decode.decode(path, size, subject.images.resize, channels))
    except faults.FAULTS as error:
        raise UserError(f"{path} cannot be decoded: {faults.reason(str(path), error)}") from error
