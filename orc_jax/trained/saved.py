"""Single trained networks: to start from, and to take out of a group.

A saved network is a directory: `network.json` says what it is, `variables` (Orbax) holds
{"params", "batch_stats"} of the plain network.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from orc_jax import methods, models, peers
from orc_jax.errors import UserError
from orc_jax.runtime.checkpoints import Checkpoints, has_checkpoint, read_config
from orc_jax.runtime.processes import barrier, is_main
from orc_jax.trained import torch_weights

PARTS = ("members", "trunk")  # of a `StackState`


def save(directory: str | Path, variables, description: dict) -> None:
    """Saves a network, all of it or nothing; an older one there is replaced.

    Of several processes all must call this, with the same variables.

    Args:
      directory: to be made.
      variables: {"params", "batch_stats"}.
      description: "network" (name), "num_classes" and whatever else describes it.
    """
    directory = Path(directory)
    new = directory.with_name(f".{directory.name}.new")
    if is_main():
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        (new / "network.json").write_text(json.dumps(description, indent=2) + "\n")
    barrier(f"{new} is there")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((new / "variables").absolute(), jax.device_get(variables))
    if is_main():
        shutil.rmtree(directory, ignore_errors=True)
        new.replace(directory)


def load(directory: str | Path):
    """A saved network: (module, variables, description).

    `module.apply(variables, images, train=False)` gives logits; images are normalised by the
    "mean" and "std" of the description (a network that came from PyTorch has none: normalise
    as its program did).

    Raises:
      UserError: there is none.
    """
    directory = Path(directory)
    try:
        description = json.loads((directory / "network.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is not a saved network: {error}") from error
    with ocp.StandardCheckpointer() as checkpointer:
        path = (directory / "variables").absolute()
        try:
            tree = checkpointer.metadata(path).item_metadata.tree
            like = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree)
            variables = checkpointer.restore(path, like)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{directory} cannot be read: {error}") from error
    module = models.create(description["network"], description["num_classes"])
    return module, variables, description


def pretrained(group: peers.Group, config, image_shape) -> dict:
    """Variables for the peers that start from a trained network (`peers[i].init_from`).

    Returns:
      peer → {"params", "batch_stats"} of the plain network.

    Raises:
      UserError: a file is missing, unreadable or of another network.
    """
    found = {}
    for stack in group.stacks:
        template = peers.abstract_variables(stack, image_shape)
        for peer in stack.peers:
            source = config.peers[peer].init_from
            if not source or peer in found:
                continue
            try:
                variables = _from(source, stack.name, template)
            except UserError as error:
                raise UserError(f"peers[{peer}].init_from: {error}") from error
            shapes = [jax.tree.map(lambda x: tuple(x.shape), t) for t in (variables, template)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"peers[{peer}].init_from: {source} trained its {stack.name} for other images "
                    "or classes than these"
                )
            found[peer] = variables
    return found


def _from(source, network, template):
    """Variables from a saved network, a run, or a PyTorch file."""
    directory, chosen = source, ""
    if not Path(source).exists():
        directory, _, chosen = source.rpartition(":")
    if not directory or not Path(directory).is_dir():
        return torch_weights.convert(torch_weights.load(source), network, template)
    if (Path(directory) / "network.json").exists():
        _, variables, description = load(directory)
        if description["network"] != network:
            raise UserError(f"{directory} is a {description['network']}, not a {network}")
        return variables
    return _from_run(directory, chosen, network)


def of_checkpoint(workdir: str | Path, which: str) -> tuple[int, list]:
    """The networks in a run's checkpoint.

    Args:
      workdir: of the run.
      which: "last", "best" or the step of a checkpoint.

    Returns:
      Its step, and every peer's {"params", "batch_stats"} as a plain network.

    Raises:
      UserError: no such run or checkpoint.
    """
    config = read_config(workdir)
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} has no checkpoint yet")
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.step(which)
        stacks = checkpoints.restore_arrays(step)["stacks"]
    layout = peers.layout(config, methods.get(config.method.name))
    states = [
        peers.StackState(
            *(peers.Variables(stack[part]["params"], stack[part]["stats"], None) for part in PARTS)
        )
        for stack in stacks
    ]
    everyone = range(len(config.peers))
    return step, [peers.plain_variables(layout, states, peer) for peer in everyone]


def _from_run(workdir, chosen, network):
    """Variables of a peer of an earlier run, from its best checkpoint."""
    config = read_config(workdir)
    names = [peer.model for peer in config.peers]
    same = [str(i) for i, name in enumerate(names) if name == network]
    if not same:
        raise UserError(f"{workdir} trained {', '.join(names)}; none is a {network}")
    if chosen and chosen not in same:
        raise UserError(f"{workdir} has no {network} {chosen!r}, allowed: {', '.join(same)}")
    if not chosen and len(same) > 1:
        raise UserError(f"{workdir} has several: write {workdir}:PEER, PEER of {', '.join(same)}")
    return of_checkpoint(workdir, "best")[1][int(chosen or same[0])]
