"""Trained networks, taken from a checkpoint of a run or from a saved network."""

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
    """A trained network, or an ensemble of several.

    Attributes:
      networks: name of each network in the registry.
      variables: {"params", "batch_stats"} of each network.
      class_names: [C], in the order of the outputs.
      images: preprocessing of each network's images; shape and resizing are equal.
      peer: position of the network in its group, or "ensemble"; None for a saved network.
      step: of the checkpoint; None for a saved network.
      scores: "top1", "top5" and "loss" on the "split" "test" or "val", with the "step" of that
        evaluation, the last one up to the checkpoint; empty if there was none.
    """

    networks: list[str]
    variables: list[Any]
    class_names: list[str]
    images: list[Preprocessing]
    peer: int | str | None = None
    step: int | None = None
    scores: dict = {}  # noqa: RUF012 - never written to


def logits(
    trained: TrainedNetworks, variables, images: UInt8[Array, "B H W channels"]
) -> Float[Array, "B C"]:
    """Compute logits; for an ensemble, the logarithm of the mean of the softmax outputs.

    Args:
      trained: the networks.
      variables: `trained.variables`, as an argument of its own so that JAX can trace it.
      images: before normalisation.
    """
    normalised = [batches.normalise(scale, images) for scale in trained.images]
    outputs: list[Any] = [
        models.create(name, len(trained.class_names)).apply(own_variables, own_images, train=False)
        for name, own_variables, own_images in zip(
            trained.networks, variables, normalised, strict=True
        )
    ]
    if trained.peer != "ensemble":
        return outputs[0]
    return losses.ensemble(jax.nn.log_softmax(jnp.stack(outputs)))


def from_saved(directory: str | Path) -> TrainedNetworks:
    """Load a saved network, see `saved.load`.

    Raises:
      UserError: the directory is not a saved network, or does not say how images are normalised.
    """
    _, variables, about = saved.load(directory)
    if "mean" not in about:
        raise UserError(
            f"{directory} does not say how images are normalised: import it with --mean=… --std=…"
        )
    names, images = preprocessing.class_names(about), preprocessing.from_json(about)
    return TrainedNetworks([about["network"]], [variables], names, [images])


def from_run(workdir: str | Path, peer: str = "best", checkpoint: str = "last") -> TrainedNetworks:
    """Take a network, or the ensemble, from a checkpoint of a run.

    Args:
      workdir: work directory of the run.
      peer: "best", "ensemble" (of all peers) or the position of a peer. The best peer is the kept
        network with the highest top-1 accuracy in the last evaluation, or among equals the one
        with the fewest parameters, or then the lowest loss.
      checkpoint: "last", "best" or the step of a checkpoint.

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
    tested = [record for record in tested if metrics.chosen_by(record)][-1:]
    if peer == "best":
        peer = str(_best(config, variables, tested))
    run = began(workdir)
    members = range(size) if peer == "ensemble" else [int(peer)]
    return TrainedNetworks(
        networks=[config.peers[i].model for i in members],
        variables=[variables[i] for i in members],
        class_names=list(run.class_names),
        images=[run.own_images.get(i, run.images) for i in members],
        peer=peer if peer == "ensemble" else int(peer),
        step=step,
        scores=_scores(tested[0], peer) if tested else {},
    )


def _best(config, variables, tested) -> int:
    """Return the best peer's position, by `tested`: a list of the last test record, or empty."""
    kept = methods.get(config.method.name).positions.kept(config.method, len(variables))
    if len(kept) == 1:
        return kept[0]
    if not tested:
        raise UserError(
            "no peer was evaluated up to this checkpoint: export one of "
            f"{', '.join(map(str, kept))} by --peer"
        )
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(peer["params"])) for peer in variables]
    scores = metrics.chosen_by(tested[0])
    return max(kept, key=lambda i: (scores["top1"][i], -sizes[i], -scores["loss"][i]))


def _scores(record, peer):
    split = "test" if record.get("test") else "val"
    test = record[split]
    if peer == "ensemble":
        scores = test["ensemble"]
    else:
        scores = {name: test[name][int(peer)] for name in ("top1", "top5", "loss")}
    return scores | {"step": record["step"], "split": split}
