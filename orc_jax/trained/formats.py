"""The files of an export: each is written, loaded back, and compared."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import lax

from orc_jax import models
from orc_jax.errors import UserError
from orc_jax.models.convolution import made_for
from orc_jax.trained import torch_weights
from orc_jax.trained.model import read_stablehlo
from orc_jax.trained.networks import TrainedNetworks, logits

# Of the logits' differences from the network itself, in units of the largest logit or of 1.
TOLERANCE = 1e-4


def write(chosen: TrainedNetworks, directory: Path) -> dict[str, float | str]:
    """Writes a network in every form that it has.

    Returns:
      File → the largest difference of its logits from the network's own, on random images; or
      why it was left out.

    Raises:
      UserError: StableHLO cannot be written.
    """
    # GPUs would round what goes into a product to ten bits.
    with jax.default_matmul_precision("highest"):
        return _write(chosen, directory)


def _write(chosen, directory):
    shape = (4, *chosen.images.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = _run(chosen, chosen.variables)(images)
    results = {}
    for name, (make, read) in FORMS.items():
        try:
            content = make(chosen)
            difference = float(np.abs(np.asarray(read(chosen, content)(images)) - expected).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                raise Unavailable(f"its logits differ by {difference:.2g}")
        except Unavailable as error:
            results[name] = str(error)
            continue
        (directory / name).write_bytes(content)
        results[name] = difference
    return results


class Unavailable(Exception):
    """A form that this network does not have, and why."""


def _run(chosen, variables):
    return partial(jax.jit(partial(logits, chosen)), variables)


def stablehlo(chosen: TrainedNetworks) -> bytes:
    """A program for any batch size, on CPUs and NVIDIA GPUs; `jax.export` reads it.

    Raises:
      UserError: flatbuffers is missing.
    """

    def run(images):
        # As fast as on either: the two have different convolutions.
        cpu, cuda = (partial(_made_for, target, chosen) for target in ("cpu", "any"))
        return lax.platform_dependent(chosen.variables, images, cpu=cpu, default=cuda)

    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda"))(_any_batch(chosen))
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise UserError("StableHLO is written with flatbuffers: pip install flatbuffers") from error


def _made_for(target, chosen, variables, images):
    with made_for(target):
        return logits(chosen, variables, images)


def _any_batch(chosen):
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *chosen.images.image_shape), np.uint8)


def weights(chosen: TrainedNetworks) -> bytes:
    """Safetensors of the variables, named as in the tree: params/stem/conv1/kernel.

    Those of an ensemble's networks begin with their number, 0/params/….
    """
    tensors = traverse_util.flatten_dict(_tree(chosen), sep="/")
    return _safetensors(tensors, "flax")


def _tree(chosen):
    if chosen.peer != "ensemble":
        return chosen.variables[0]
    return {str(i): variables for i, variables in enumerate(chosen.variables)}


def read_weights(chosen: TrainedNetworks, content: bytes) -> Callable:
    """The network with the variables of `weights`."""
    tree = traverse_util.unflatten_dict(safetensors.numpy.load(content), sep="/")
    if chosen.peer != "ensemble":
        return _run(chosen, [tree])
    return _run(chosen, [tree[str(i)] for i in range(len(tree))])


def torch(chosen: TrainedNetworks) -> bytes:
    """Safetensors by the names of the network's PyTorch program."""
    if chosen.peer == "ensemble":
        raise Unavailable("an ensemble is no network of PyTorch's: export its peers one by one")
    (network,), (variables,) = chosen.networks, chosen.variables
    if not models.entry(network).torch_names:
        raise Unavailable(f"{network} has no PyTorch program")
    return _safetensors(torch_weights.torch_tensors(network, variables), "pt")


def read_torch(chosen: TrainedNetworks, content: bytes) -> Callable:
    """The network with the variables of `torch`."""
    tensors, (network,) = safetensors.numpy.load(content), chosen.networks
    return _run(chosen, [torch_weights.convert(tensors, network, chosen.variables[0])])


def _safetensors(tensors, framework):
    # Safetensors takes a transposed array's memory as it lies.
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    return safetensors.numpy.save(tensors, {"format": framework})


def onnx(chosen: TrainedNetworks) -> bytes:
    """ONNX of any batch size, by jax2onnx: from "images" to "logits"."""
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # of packages that it does without
    try:
        import jax2onnx
        import onnxruntime  # noqa: F401 - to read it back
    except ImportError as error:
        raise Unavailable(
            "it needs pip install onnx onnx-ir onnxruntime && pip install --no-deps jax2onnx"
        ) from error
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # speaks of shapes that it leaves open
    try:
        model = jax2onnx.to_onnx(
            partial(_made_for, "any", chosen, chosen.variables),
            [_any_batch(chosen)],
            model_name="-".join(chosen.networks),
            input_names=["images"],
            output_names=["logits"],
        )
    except Exception as error:
        # What a converter raises for what it does not know can be anything.
        raise Unavailable(f"jax2onnx cannot convert it: {_short(error)}") from error
    # The converter notes some shapes with their axes in another order than its operations have.
    del model.graph.value_info[:]
    return model.SerializeToString()


def read_onnx(chosen: TrainedNetworks, content: bytes) -> Callable:
    """The program of `onnx`, run by onnxruntime."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        session.run(None, {"images": np.zeros((1, *chosen.images.image_shape), np.uint8)})
    except Exception as error:
        # Its errors have no class of their own that is public.
        raise Unavailable(f"onnxruntime cannot run it: {_short(error)}") from error
    return lambda images: session.run(["logits"], {"images": images})[0]


def _short(error):
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}"


# File → how it is made of a network, and how that becomes a function of images again.
FORMS = {
    "model.stablehlo": (stablehlo, lambda chosen, content: jax.jit(read_stablehlo(content))),
    "model.safetensors": (weights, read_weights),
    "model.torch.safetensors": (torch, read_torch),
    "model.onnx": (onnx, read_onnx),
}
