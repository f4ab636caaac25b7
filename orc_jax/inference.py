"""Trained networks that answer: taken out of a run, a saved network or an export."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from orc_jax import losses, methods, metrics, models, networks
from orc_jax.checkpoint import read_config
from orc_jax.data import batches
from orc_jax.errors import UserError


class Chosen(NamedTuple):
    """A network, or an ensemble of several.

    Attributes:
      networks: name of each in the registry.
      variables: {"params", "batch_stats"} of each.
      class_names: [C] of them.
      images: "image_shape" (height, width, channels); "mean" and "std" that normalise; "resize",
        what the shorter side of a file's image is scaled to before its centre is taken (0: to
        the images' size).
      peer: its position in the group, or "ensemble"; None for a saved network.
      step: of the checkpoint; None for a saved network.
      scores: "top1", "top5" and "loss" at "step", the last one up to then that was evaluated;
        empty if none was.
    """

    networks: list[str]
    variables: list[Any]
    class_names: list[str]
    images: dict
    peer: int | str | None = None
    step: int | None = None
    scores: dict = {}  # noqa: RUF012 - never written to


def logits(
    chosen: Chosen, variables, images: UInt8[Array, "B H W channels"]
) -> Float[Array, "B C"]:
    """Logits; of an ensemble the logarithm of the mean of the networks' softmax outputs.

    Args:
      chosen: which networks.
      variables: as `chosen.variables`, given by themselves so that they can be traced.
      images: not normalised.
    """
    mean, std = (np.array(chosen.images[key], np.float32) for key in ("mean", "std"))
    images = batches.normalise(batches.OnDevice(images, None, mean, std), images)
    outputs = [
        models.create(name, len(chosen.class_names)).apply(one, images, train=False)
        for name, one in zip(chosen.networks, variables, strict=True)
    ]
    if chosen.peer != "ensemble":
        return outputs[0]
    return losses.ensemble(jax.nn.log_softmax(jnp.stack(outputs)))


class Model(NamedTuple):
    """What `load` gives.

    Attributes:
      class_names: [C], in the order of the outputs.
      image_shape: (height, width, channels).
      resize: see `Chosen.images`.
      logits: uint8 [B, *image_shape] → float32 [B, C], compiled.
    """

    class_names: list[str]
    image_shape: tuple[int, int, int]
    resize: int
    logits: Callable

    def predict(self, images, batch_size: int = 256) -> Float[np.ndarray, "B C"]:
        """Probabilities of the classes.

        Args:
          images: uint8 [B, H, W, channels], or [B, H, W] where there is one channel.
          batch_size: how many go through the network at once.

        Raises:
          UserError: they are of another type or size.
        """
        images = np.asarray(images)
        if images.ndim == 3 and self.image_shape[2] == 1:
            images = images[..., None]
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise UserError(
                f"images must be uint8 {['B', *self.image_shape]}, B at least 1, "
                f"not {images.dtype} {list(images.shape)}"
            )
        # Always as many, so that one program does for all.
        rows, found = np.zeros((min(batch_size, len(images)), *self.image_shape), np.uint8), []
        for first in range(0, len(images), len(rows)):
            part = images[first : first + len(rows)]
            rows[: len(part)] = part
            found.append(np.asarray(jax.nn.softmax(self.logits(rows)))[: len(part)])
        return np.concatenate(found)


def load(directory: str | Path) -> Model:
    """The network of an export, a saved network, or a run's best peer in its last checkpoint.

    Raises:
      UserError: the directory is none of them, is damaged, or does not say how images are
        normalised.
    """
    directory = Path(directory)
    if (directory / "export.json").is_file():
        return _exported(directory)
    if (directory / "network.json").is_file():
        chosen = saved(directory)
    elif (directory / "config.json").is_file():
        chosen = from_run(directory)
    else:
        raise UserError(
            f"{directory} is no export, no saved network and no run: it has no export.json, "
            "network.json or config.json"
        )
    run = jax.jit(partial(logits, chosen))
    return _model(chosen.class_names, chosen.images, partial(run, jax.device_put(chosen.variables)))


def read_stablehlo(program: bytes) -> Callable:
    """What `forms.stablehlo` wrote: uint8 [B, H, W, channels] → logits [B, C].

    Raises:
      UserError: it is damaged, or the package to read it is missing.
    """
    try:
        return jax.export.deserialize(bytearray(program)).call
    except ImportError as error:
        raise UserError("StableHLO is read with flatbuffers: pip install flatbuffers") from error
    except Exception as error:
        # JAX and flatbuffers raise many kinds here; all of them mean the same to the user.
        raise UserError("this is not a program that jax.export wrote, or it is cut off") from error


def _model(class_names, images, run):
    return Model(class_names, tuple(images["image_shape"]), images["resize"], run)


def _exported(directory):
    try:
        about = json.loads((directory / "export.json").read_text())
        run = jax.jit(read_stablehlo((directory / "model.stablehlo").read_bytes()))
        return _model(about["class_names"], about["images"], run)
    except (OSError, ValueError, KeyError, UserError) as error:
        raise UserError(f"{directory} cannot be read: {error}") from error


def saved(directory: str | Path) -> Chosen:
    """A saved network, see `networks.load`.

    Raises:
      UserError: there is none, or it does not say how images are normalised.
    """
    _, variables, about = networks.load(directory)
    if "mean" not in about:
        raise UserError(
            f"{directory} does not say how images are normalised: import it with --mean=… --std=…"
        )
    return Chosen([about["network"]], [variables], about["class_names"], _images(about))


def _images(about):
    return {key: about[key] for key in ("image_shape", "resize", "mean", "std")}


def began(workdir: str | Path) -> dict:
    """What a run noted when it began: "image_shape", "resize", "mean", "std", "command",
    "versions".

    Raises:
      UserError: it is not there.
    """
    try:
        return json.loads((Path(workdir) / "run.json").read_text())
    except OSError as error:
        raise UserError(f"{workdir}/run.json cannot be read: {error.strerror}") from error


def from_run(workdir: str | Path, peer: str = "best", checkpoint: str = "last") -> Chosen:
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
    step, variables = networks.of_checkpoint(workdir, checkpoint)
    tested = [record for record in metrics.read(workdir) if record["step"] <= step]
    tested = [record for record in tested if "test" in record][-1:]
    if peer == "best":
        peer = _best(config, variables, tested)
    members = range(size) if peer == "ensemble" else [int(peer)]
    return Chosen(
        networks=[config.peers[i].model for i in members],
        variables=[variables[i] for i in members],
        class_names=list(config.data.class_names),
        images=_images(began(workdir)),
        peer=peer if peer == "ensemble" else int(peer),
        step=step,
        scores=_scores(tested[0], peer) if tested else {},
    )


def _best(config, variables, tested) -> int:
    kept = methods.get(config.method.name).kept(config.method, len(variables))
    if len(kept) == 1:
        return kept[0]
    if not tested:
        raise UserError(
            "no peer was evaluated up to this checkpoint: export one of "
            f"{', '.join(map(str, kept))} by --peer"
        )
    sizes = [sum(x.size for x in jax.tree.leaves(one["params"])) for one in variables]
    return max(kept, key=lambda i: (tested[0]["test"]["top1"][i], -sizes[i]))


def _scores(record, peer):
    test = record["test"]
    if peer == "ensemble":
        scores = test["ensemble"]
    else:
        scores = {name: test[name][int(peer)] for name in ("top1", "top5", "loss")}
    return scores | {"step": record["step"]}
