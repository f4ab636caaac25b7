"""Saved networks, and other files that a peer can start from.

A saved network is a directory: `network.json` describes the network, `variables` (Orbax) holds its
{"params", "batch_stats"}, without auxiliary heads.
"""

import shutil
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from orc_jax import methods, models, peers
from orc_jax.data import preprocessing
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.runtime import display, files
from orc_jax.runtime.checkpoint_notes import has_checkpoint
from orc_jax.runtime.checkpoints import Checkpoints, read_config
from orc_jax.runtime.processes import barrier, is_main
from orc_jax.runtime.workdir import began
from orc_jax.trained import torch_weights


def save(directory: str | Path, variables, description: dict) -> None:
    """Save a network; the directory is replaced as a whole.

    If there are several processes, all must call this with the same variables.

    Args:
      directory: where it goes.
      variables: {"params", "batch_stats"}.
      description: content of `network.json`: "network" (the name), "num_classes", and optionally
        "class_names" and the keys of `Preprocessing.to_json`.

    Raises:
      UserError: it cannot be written.
    """
    directory = Path(directory)
    new = directory.with_name(f".{directory.name}.new")
    if is_main():
        shutil.rmtree(new, ignore_errors=True)
        with files.unwritable(directory):
            new.mkdir(parents=True)
        files.write(new / "network.json", files.to_json(description))
    barrier(f"{new} exists")
    with files.unwritable(directory), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((new / "variables").absolute(), jax.device_get(variables))
    if is_main():
        shutil.rmtree(directory, ignore_errors=True)
        new.replace(directory)


def load(directory: str | Path):
    """Load a saved network.

    `module.apply(variables, images, train=False)` computes logits of images that are normalised by
    "mean" and "std" of the description. A network that was imported from PyTorch without them
    takes images as its PyTorch program normalised them.

    Args:
      directory: of the saved network.

    Returns:
      (module, variables, description), see `save`.

    Raises:
      UserError: the directory is not a saved network, or is damaged.
    """
    directory = Path(directory)
    about = directory / "network.json"
    if not about.is_file():
        raise UserError(f"{directory} is not a saved network: it has no network.json")
    description = files.read_json(about, "the network.json of a saved network")
    try:
        module = _described(description)
    except UserError as error:
        raise UserError(f"{about}: {error}") from error
    with ocp.StandardCheckpointer() as checkpointer:
        path = (directory / "variables").absolute()
        try:
            tree = checkpointer.metadata(path).item_metadata.tree
            like = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree)
            variables = checkpointer.restore(path, like)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{directory} cannot be read: {error}") from error
    if "image_shape" in description:
        images = jax.ShapeDtypeStruct((1, *description["image_shape"]), np.float32)
        apply = partial(module.apply, train=False)
        try:
            jax.eval_shape(apply, variables, images)
        except Exception as error:
            # Flax raises many exceptions here, which mean the same to the user.
            network, count = description["network"], description["num_classes"]
            raise UserError(
                f"{path} holds other weights than those of a {network} of {count} classes for "
                f"images {description['image_shape']}, which {about} describes"
            ) from error
    return module, variables, description


def _described(description):
    """Return the network of a `network.json`, whose fields are checked."""
    count = description.get("num_classes")
    if not isinstance(count, int) or count < 1:
        raise UserError(f"num_classes is {count}, allowed: whole numbers from 1")
    if "image_shape" in description:
        preprocessing.image_shape(description)
    if "mean" in description:
        preprocessing.from_json(description)
    if "class_names" in description:
        names = preprocessing.class_names(description)
        if len(names) != count:
            raise UserError(f"num_classes is {count}, but there are {len(names)} class_names")
    return models.create(str(description.get("network")), count)


def pretrained(
    group: peers.Group,
    sources: dict[int, str],
    images: Preprocessing,
    class_names: tuple[str, ...] = (),
    new_heads: Collection[int] = (),
) -> tuple[dict[int, Any], dict[int, Preprocessing]]:
    """Load the variables of the peers that start from a trained network.

    Args:
      group: the networks.
      sources: peer → what it starts from (`peers[i].init_from`).
      images: preprocessing of the group's images.
      class_names: of the data. A network that knows the same classes in another order gets its
        outputs reordered.
      new_heads: peers that get all but the classifier (`peers[i].new_head`).

    Returns:
      Position of a peer → {"params", "batch_stats"} of its network, without auxiliary heads; and
      position of a peer → preprocessing that its network was trained with, where that is known and
      differs from the group's.

    Raises:
      UserError: a file is missing, unreadable, or holds another network or one of other classes.
    """
    loaded: dict[int, Any] = {}
    own_images: dict[int, Preprocessing] = {}
    for stack in group.stacks:
        if not any(sources.get(peer) for peer in stack.peers):
            continue
        _, template = peers.abstract_logits(stack, images.image_shape)
        for peer in stack.peers:
            source = sources.get(peer)
            if not source or peer in loaded:
                continue
            try:
                variables, names, scale = _from(source, stack.name, template, peer in new_heads)
                if peer in new_heads:
                    variables, expected = (_headless(tree) for tree in (variables, template))
                    display.say(
                        f"peers[{peer}] gets a new classifier of {len(class_names)} classes on the "
                        f"weights of {source}"
                    )
                else:
                    variables, expected = _reordered(variables, names, class_names), template
            except UserError as error:
                raise UserError(f"peers[{peer}].init_from: {error}") from error
            shapes = [jax.tree.map(lambda x: tuple(x.shape), t) for t in (variables, expected)]
            if shapes[0] != shapes[1]:
                remedy = ""
                if peer not in new_heads and _headless(shapes[0]) == _headless(shapes[1]):
                    remedy = f" (--config.peers[{peer}].new_head=True takes all but the classifier)"
                raise UserError(
                    f"peers[{peer}].init_from: {source} trained its {stack.name} for other images "
                    f"or classes than these{remedy}"
                )
            loaded[peer] = variables
            own = scale and images._replace(mean=scale.mean, std=scale.std)
            if own and own.scale() != images.scale():
                own_images[peer] = own
    return loaded, own_images


def _from(source, network, template, new_head=False):
    """Load variables, class names and preprocessing of a saved network, a run or a PyTorch file.

    What is unknown is () or None. A run is RUN, RUN:PEER, or either of them with @best or the
    @STEP of a checkpoint behind it.
    """
    which = "last"
    if not Path(source).exists() and "@" in source:
        source, _, which = source.rpartition("@")
    directory, peer = source, ""
    if not Path(source).exists():
        directory, _, peer = source.rpartition(":")
    if not directory or not Path(directory).is_dir():
        tensors = torch_weights.load(source)
        headless = partial(_converted_without_classifier, tensors, network, template)
        if new_head:
            return headless(), (), None
        try:
            return torch_weights.convert(tensors, network, template), (), None
        except UserError as error:
            with suppress(UserError):
                headless()
                error.args = (f"{error} (new_head=True takes all but the classifier)",)
            raise
    if (Path(directory) / "network.json").exists():
        _, variables, description = load(directory)
        if description["network"] != network:
            raise UserError(f"{directory} is a {description['network']}, not a {network}")
        scale = preprocessing.from_json(description) if "mean" in description else None
        return variables, tuple(description.get("class_names", ())), scale
    return _from_run(directory, peer, network, which)


def _converted_without_classifier(tensors, network, template):
    tensors = torch_weights.without_classifier(tensors, network, template)
    return torch_weights.convert(tensors, network, _headless(template))


def _headless(variables):
    """Return a network's variables without those of its classifier."""
    params = variables["params"]
    name = peers.classifier(params)
    own = {key: value for key, value in params.get("head", {}).items() if key != name}
    rest = {key: value for key, value in params.items() if key != "head"}
    return {**variables, "params": rest | ({"head": own} if own else {})}


def _reordered(variables, own: tuple[str, ...], names: tuple[str, ...]):
    """Put the outputs of a classifier into the order of the data's classes.

    Args:
      variables: {"params", "batch_stats"}.
      own, names: class names of the network and of the data; () or mere numbers: unknown.

    Raises:
      UserError: the network knows other classes.
    """
    if own == names or any(_are_numbers(known) for known in (own, names)):
        return variables
    if set(own) != set(names):
        shown = [
            ", ".join(sorted(set(a) - set(b))[:5]) or "no others"
            for a, b in ((own, names), (names, own))
        ]
        raise UserError(
            f"it was trained for other classes: it knows {shown[0]}, the data {shown[1]} "
            "(new_head=True takes all but the classifier)"
        )
    classifier = peers.classifier(variables["params"])
    if classifier is None:
        raise UserError(
            "its classes are in another order, and its head has no dense layer named fc"
        )
    head = variables["params"]["head"]
    order = [own.index(name) for name in names]
    moved = {key: np.asarray(leaf)[..., order] for key, leaf in head[classifier].items()}
    params = variables["params"] | {"head": {**head, classifier: moved}}
    return {**variables, "params": params}


def _are_numbers(names: tuple[str, ...]) -> bool:
    """Return whether these names say nothing about the classes."""
    return names == tuple(str(i) for i in range(len(names)))


def of_checkpoint(workdir: str | Path, which: str) -> tuple[int, list]:
    """Load the networks of all peers from a checkpoint of a run.

    Args:
      workdir: work directory of the run.
      which: "last", "best" or the step of a checkpoint.

    Returns:
      The step of the checkpoint, and {"params", "batch_stats"} of every peer's network, without
      auxiliary heads.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    config = read_config(workdir)
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} has no checkpoint yet")
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.step(which)
        stacks = checkpoints.restore_arrays(step)["stacks"]
    layout = peers.layout(config, methods.get(config.method.name))

    def variables(part):
        return peers.Variables(part["params"], part["stats"], None)

    states = [
        peers.StackState(members=variables(stack["members"]), trunk=variables(stack["trunk"]))
        for stack in stacks
    ]
    positions = range(len(config.peers))
    return step, [peers.plain_variables(layout, states, peer) for peer in positions]


def _from_run(workdir, peer, network, which):
    """Load what `_from` does of a peer of an earlier run; "" is the only one that fits."""
    config = read_config(workdir)
    names = [member.model for member in config.peers]
    allowed = [str(i) for i, name in enumerate(names) if name == network]
    if not allowed:
        raise UserError(f"{workdir} trained {', '.join(names)}; none is a {network}")
    if peer and peer not in allowed:
        raise UserError(f"{workdir} has no {network} {peer!r}, allowed: {', '.join(allowed)}")
    if not peer and len(allowed) > 1:
        raise UserError(
            f"{workdir} has several: write {workdir}:PEER, PEER of {', '.join(allowed)}"
        )
    found, run = int(peer or allowed[0]), began(workdir)
    scale = run.own_images.get(found, run.images)
    return of_checkpoint(workdir, which)[1][found], run.class_names, scale
