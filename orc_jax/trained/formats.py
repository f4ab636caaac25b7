"""The formats of an export: each file is made, read back, and compared with the network."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import lax

from orc_jax import compiler, models
from orc_jax.errors import UserError
from orc_jax.models.convolution import made_for
from orc_jax.trained import onnx_program, torch_weights
from orc_jax.trained.model import read_stablehlo
from orc_jax.trained.networks import TrainedNetworks, logits

# The largest difference allowed between the logits of a file and of the network, relative to the
# largest logit, or absolute where all logits are below 1.
TOLERANCE = 1e-4


def write(trained: TrainedNetworks, directory: Path) -> dict[str, float | str]:
    """Write a network in every format that it has.

    Args:
      trained: a network, or an ensemble of several.
      directory: where the files go; it exists.

    Returns:
      For each file, the largest difference between its logits and the network's on random images,
      or the reason why it was left out.

    Raises:
      UserError: StableHLO cannot be written.
    """
    # By default, GPUs round the factors of a product to ten bits.
    with jax.default_matmul_precision("highest"):
        return _write(trained, directory)


def _write(trained, directory):
    shape = (4, *trained.images[0].image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = _run(trained, trained.variables)(images)
    results = {}
    for name, (make, read) in FORMS.items():
        try:
            content = make(trained)
            difference = float(np.abs(np.asarray(read(trained, content)(images)) - expected).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                raise Unavailable(f"its logits differ by {difference:.2g}")
        except Unavailable as error:
            results[name] = str(error)
            continue
        (directory / name).write_bytes(content)
        results[name] = difference
    return results


class Unavailable(Exception):
    """The reason why a network does not have a format."""


def _run(trained, variables):
    return partial(compiler.jit(partial(logits, trained)), variables)


def stablehlo(trained: TrainedNetworks) -> bytes:
    """Make the program of a network, which `jax.export` reads.

    It takes any batch size, and runs on CPUs and NVIDIA GPUs.

    Raises:
      UserError: flatbuffers is missing.
    """

    def run(images):
        # Which form of a convolution is fast depends on the platform.
        cpu, cuda = (partial(_made_for, target, trained) for target in ("cpu", "any"))
        return lax.platform_dependent(trained.variables, images, cpu=cpu, default=cuda)

    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda"))(_any_batch(trained))
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise UserError("StableHLO is written with flatbuffers: pip install flatbuffers") from error


def _made_for(target, trained, variables, images):
    with made_for(target):
        return logits(trained, variables, images)


def _any_batch(trained):
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *trained.images[0].image_shape), np.uint8)


def weights(trained: TrainedNetworks) -> bytes:
    """Make a safetensors file of the variables, named by their path: params/stem/conv1/kernel.

    For an ensemble, the path begins with the network's number: 0/params/….
    """
    tensors = traverse_util.flatten_dict(_tree(trained), sep="/")
    return _safetensors(tensors, "flax")


def _tree(trained):
    if trained.peer != "ensemble":
        return trained.variables[0]
    return {str(i): variables for i, variables in enumerate(trained.variables)}


def read_weights(trained: TrainedNetworks, content: bytes) -> Callable:
    """Return the network, images → logits, with the variables of a file that `weights` made."""
    tree = traverse_util.unflatten_dict(safetensors.numpy.load(content), sep="/")
    if trained.peer != "ensemble":
        return _run(trained, [tree])
    return _run(trained, [tree[str(i)] for i in range(len(tree))])


def torch(trained: TrainedNetworks) -> bytes:
    """Make a safetensors file of the variables, with the names of the network's PyTorch program.

    Raises:
      Unavailable: this is an ensemble, or the network has no PyTorch program.
    """
    if trained.peer == "ensemble":
        raise Unavailable("PyTorch has no such ensemble: export its peers one by one")
    (network,), (variables,) = trained.networks, trained.variables
    if not models.entry(network).torch_names:
        raise Unavailable(f"{network} has no PyTorch program")
    return _safetensors(torch_weights.torch_tensors(network, variables), "pt")


def read_torch(trained: TrainedNetworks, content: bytes) -> Callable:
    """Return the network, images → logits, with the variables of a file that `torch` made."""
    tensors, (network,) = safetensors.numpy.load(content), trained.networks
    return _run(trained, [torch_weights.convert(tensors, network, trained.variables[0])])


def _safetensors(tensors, framework):
    # For a transposed array, safetensors would write the memory in its original order.
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    return safetensors.numpy.save(tensors, {"format": framework})


def onnx(trained: TrainedNetworks, dtype: Any = np.float32) -> bytes:
    """Make an ONNX program, see `onnx_program.program`.

    Raises:
      Unavailable: a package is missing, or the network has an operation that cannot be written.
    """
    shape = trained.images[0].image_shape
    function = partial(_made_for, "any", trained)
    try:
        import onnxruntime  # noqa: F401 - needed by `read_onnx`

        return onnx_program.program(function, trained.variables, shape, dtype)
    except ImportError as error:
        raise Unavailable("it needs pip install onnx onnxruntime") from error
    except onnx_program.Unsupported as error:
        raise Unavailable(str(error)) from error
    except Exception as error:
        # A network of the user's own may have a form of an operation that nobody has tried.
        raise Unavailable(f"it cannot be written: {short(error)}") from error


def read_onnx(trained: TrainedNetworks, content: bytes) -> Callable:
    """Return the program that `onnx` made, images → logits, run by onnxruntime.

    Raises:
      Unavailable: onnxruntime cannot run it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        session.run(None, {"images": np.zeros((1, *trained.images[0].image_shape), np.uint8)})
    except Exception as error:
        # The classes of its exceptions are not public.
        raise Unavailable(f"onnxruntime cannot run it: {short(error)}") from error
    return lambda images: session.run(["logits"], {"images": images})[0]


def short(error: Exception) -> str:
    """Describe an exception of another library in a line."""
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}"


# File → function that makes its content, and function that reads it as images → logits.
FORMS = {
    "model.stablehlo": (
        stablehlo,
        lambda trained, content: compiler.jit(read_stablehlo(content).call),
    ),
    "model.safetensors": (weights, read_weights),
    "model.torch.safetensors": (torch, read_torch),
    "model.onnx": (onnx, read_onnx),
}
