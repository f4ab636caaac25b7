"""Trained networks that answer: taken out of a run, a saved network or an export."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from orc_jax import losses, methods, models
from orc_jax.data import batches, preprocessing
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoints import read_config
from orc_jax.runtime.workdir import began
from orc_jax.trained import saved


class TrainedNetworks(NamedTuple):
    """A network, or an ensemble of several.

    Attributes:
      networks: name of each in the registry.
      variables: {"params", "batch_stats"} of each.
      class_names: [C] of them.
      images: what images must be like.
      peer: its position in the group, or "ensemble"; None for a saved network.
      step: of the checkpoint; None for a saved network.
      scores: "top1", "top5" and "loss" at "step", the last one up to then that was evaluated;
        empty if none was.
    """

    networks: list[str]
    variables: list[Any]
    class_names: list[str]
    images: Preprocessing
    peer: int | str | None = None
    step: int | None = None
    scores: dict = {}  # noqa: RUF012 - never written to


def logits(
    chosen: TrainedNetworks, variables, images: UInt8[Array, "B H W channels"]
) -> Float[Array, "B C"]:
    """Logits; of an ensemble the logarithm of the mean of the networks' softmax outputs.

    Args:
      chosen: which networks.
      variables: as `chosen.variables`, given by themselves so that they can be traced.
      images: not normalised.
    """
    images = batches.normalise(chosen.images, images)
    outputs = [
        models.create(name, len(chosen.class_names)).apply(its_variables, images, train=False)
        for name, its_variables in zip(chosen.networks, variables, strict=True)
    ]
    if chosen.peer != "ensemble":
        return outputs[0]
    return losses.ensemble(jax.nn.log_softmax(jnp.stack(outputs)))


def from_saved(directory: str | Path) -> TrainedNetworks:
    """A saved network, see `saved.load`.

    Raises:
      UserError: there is none, or it does not say how images are normalised.
    """
    _, variables, about = saved.load(directory)
    if "mean" not in about:
        raise UserError(
            f"{directory} does not say how images are normalised: import it with --mean=… --std=…"
        )
    return TrainedNetworks(
        [about["network"]], [variables], about["class_names"], preprocessing.from_json(about)
    )


def from_run(workdir: str | Path, peer: str = "best", checkpoint: str = "last") -> TrainedNetworks:
    """Networks of a run's checkpoint.

    Args:
      workdir: of the run.
      peer: "best" (of the kept networks the one with the highest top-1 in the last evaluation,
        of equal ones the one with the fewest parameters), "ensemble" (of all peers) or the
        position of one in the group.
      checkpoint: "last", "best" or the step of one.

    Raises:
      UserError: there is no such run, checkpoint or peer.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    size = len(config.peers)
    if peer not in ("best", "ensemble", *map(str, range(size))):
        raise UserError(f"peer is {peer!r}, allowed: best, ensemble, 0 to {size - 1}")
    step, variables = saved.of_checkpoint(workdir, checkpoint)
    tested = [record for record in metrics.read(workdir) if record["step"] <= step]
    tested = [record for record in tested if "test" in record][-1:]
    if peer == "best":
        peer = _best(config, variables, tested)
    noted = began(workdir)
    members = range(size) if peer == "ensemble" else [int(peer)]
    return TrainedNetworks(
        networks=[config.peers[i].model for i in members],
        variables=[variables[i] for i in members],
        class_names=list(noted.class_names),
        images=noted.images,
        peer=peer if peer == "ensemble" else int(peer),
        step=step,
        scores=_scores(tested[0], peer) if tested else {},
    )


def _best(config, variables, tested) -> int:
    kept = methods.get(config.method.name).positions.kept(config.method, len(variables))
    if len(kept) == 1:
        return kept[0]
    if not tested:
        raise UserError(
            "no peer was evaluated up to this checkpoint: export one of "
            f"{', '.join(map(str, kept))} by --peer"
        )
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(network["params"])) for network in variables]
    return max(kept, key=lambda i: (tested[0]["test"]["top1"][i], -sizes[i]))


def _scores(record, peer):
    test = record["test"]
    if peer == "ensemble":
        scores = test["ensemble"]
    else:
        scores = {name: test[name][int(peer)] for name in ("top1", "top5", "loss")}
    return scores | {"step": record["step"]}
