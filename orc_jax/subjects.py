"""What figures show: trained networks, and images as these networks see them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from orc_jax import models, networks, peers, run
from orc_jax.data import Images, decode, folder
from orc_jax.errors import UserError
from orc_jax.models.network import Network


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
    """Networks, and what their images are like.

    Attributes:
      peers: in the order of the group.
      mean, std: [channels], of pixel/255.
      image_shape: (height, width, channels).
      class_names: in the order of their indices.
      test: the run's test split; None for a network by itself.
      eval_resize: `config.data.eval_resize`.
    """

    peers: list[Peer]
    mean: np.ndarray
    std: np.ndarray
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    test: Any = None
    eval_resize: int = 0


class Picture(NamedTuple):
    """An image [H, W, channels] uint8 with its name, and its label if that is known."""

    name: str
    pixels: np.ndarray
    label: int | None = None


def of_run(setup: run.Setup, state) -> Subject:
    """All peers of a run's checkpoint, see `run.restore`."""
    group, dataset, stacks = setup.group, setup.dataset, jax.device_get(state.stacks)
    roles = setup.method.describe(setup.config.method, group.size)
    modules = {name: models.create(name, dataset.num_classes) for name in group.names}
    found = [
        Peer(
            f"{peer} {name}, {role}",
            modules[name],
            peers.plain_variables(group.stacks, stacks, peer),
        )
        for peer, (name, role) in enumerate(zip(group.names, roles, strict=True))
    ]
    scale = (np.asarray(x) for x in (setup.test_split.mean, setup.test_split.std))
    names, resize = dataset.class_names, setup.config.data.eval_resize
    return Subject(found, *scale, dataset.image_shape, names, dataset.test, resize)


def of_network(directory: str | Path, mean: list[float], std: list[float], size: int) -> Subject:
    """A saved network by itself, see `networks.load`.

    Args:
      directory: of the network.
      mean, std: [channels] where the network does not bring them along; else empty.
      size: of images, where it does not bring that along; 0: the network's usual one.

    Raises:
      UserError: there is no such network, or no way to normalise its images is known.
    """
    module, variables, about = networks.load(directory)
    if not mean and not std:
        mean, std = about.get("mean", []), about.get("std", [])
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise UserError(
            f"{directory} needs --mean=… and --std=… of pixel/255, for RGB or grey images one "
            f"number or three each: given are {len(mean)} and {len(std)}"
        )
    if "image_shape" in about:
        size = size or about["image_shape"][0]
    size = size or models.NETWORKS[about["network"]].size
    names = tuple(about.get("class_names", map(str, range(about["num_classes"]))))
    shape = (size, size, len(mean))
    peer = Peer(about["network"], module, variables)
    return Subject([peer], np.float32(mean), np.float32(std), shape, names)


def pictures(images: list[str], subject: Subject) -> list[Picture]:
    """The images asked for: files, folders, or `test:FIRST-LAST` of the test split.

    Raises:
      UserError: there is no such file or index, or a file is no image.
    """
    found = []
    for name in images:
        if chosen := re.fullmatch(r"test:(\d+)(?:-(\d+))?", name):
            first, last = int(chosen[1]), int(chosen[2] or chosen[1])
            found += [_of_test(subject, at) for at in range(first, last + 1)]
        elif Path(name).is_dir():
            found += [_of_file(subject, Path(path)) for path in folder.images_below(name)]
        else:
            found.append(_of_file(subject, Path(name)))
    if not found:
        raise UserError(f"--images={','.join(images)} has no image ({', '.join(folder.SUFFIXES)})")
    return found


def _of_test(subject, at):
    test = subject.test
    if test is None:
        raise UserError(f"test:{at} is an image of a run: give --workdir, or image files")
    if at >= len(test.labels):
        raise UserError(f"test:{at} is not there, allowed: test:0 to test:{len(test.labels) - 1}")
    if isinstance(test, Images):
        pixels = test.images[at]
    else:
        size, _, channels = subject.image_shape
        pixels = decode.decode(test.file(at), size, subject.eval_resize, channels)
    return Picture(f"test-{at}", pixels, int(test.labels[at]))


def _of_file(subject, path):
    size, _, channels = subject.image_shape
    try:
        return Picture(path.stem, decode.decode(path, size, subject.eval_resize, channels))
    except decode.FAULTS as error:
        raise UserError(f"{path} cannot be decoded: {decode.reason(str(path), error)}") from error
