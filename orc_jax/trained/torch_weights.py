"""Conversion between the weights of published PyTorch networks and Flax variables.

The tensors' names are those of each network's own program, see its file in models/. Every tensor
of the network must be there with the right shape, and none may be left over.
"""

import argparse
import re
from pathlib import Path

import jax
import numpy as np

from orc_jax import models
from orc_jax.errors import UserError

# Classes that checkpoints hold besides tensors and Python's own types: options and NumPy scalars.
_NUMBER = np.float64(0).__reduce__()[0]
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
    (_NUMBER, "numpy.core.multiarray.scalar"),  # written by NumPy 1
    (_NUMBER, "numpy._core.multiarray.scalar"),
]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a .safetensors, .pth, .pth.tar or .pt file.

    PyTorch files need torch, and are read with `weights_only=True`, which refuses files that would
    run code. The wrappers {"model": …} and {"state_dict": …} and the prefix "module." are removed.
    Whatever else is in a wrapper (an epoch, the state of an optimizer, the options of an
    `argparse.Namespace`) is ignored.

    Args:
      path: the file.

    Returns:
      PyTorch name → tensor; floating-point tensors of a PyTorch file are float32.

    Raises:
      UserError: there is no such file, it holds more than tensors, or torch is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        tensors = _load_safetensors(path)
    elif path.name.endswith((".pth", ".pt", ".pth.tar")):
        tensors = _load_torch(path)
    else:
        raise UserError(f"{path}: weights come from .safetensors, .pth or .pt files")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _load_safetensors(path):
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def _load_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch to be read: pip install torch") from error
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch raises a dozen exceptions here, which mean the same to the user.
            asks_for = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = (
                f"it asks for {asks_for[1]}" if asks_for else "it is damaged or of another kind"
            )
            raise UserError(f"{path} is not a checkpoint of plain tensors: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise UserError(f"{path} is not a state dict: it holds more than named tensors")
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }


def torch_name(network: str, path: tuple[str, ...]) -> str:
    """Return the PyTorch name of a variable: stages_0/block1/conv1/kernel → layer1.1.conv1.weight.

    Args:
      network: name of the network in the registry, e.g. "resnet20".
      path: keys from the root of the collection to the leaf.
    """
    name = ".".join(path[:-1]) + "."
    for pattern, replacement in models.entry(network).torch_names:
        name = re.sub(pattern, replacement, name)
    return name + _LEAVES[path[-1]]


def torch_tensors(network: str, variables) -> dict[str, np.ndarray]:
    """Convert the variables of a network to PyTorch tensors, the inverse of `convert`.

    Args:
      network: name of the network in the registry.
      variables: {"params", "batch_stats"}.

    Returns:
      PyTorch name → tensor; the names of an auxiliary head begin with the head's name.
    """
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        keys, prefix = tuple(key.key for key in path[1:]), ""
        if keys[0].startswith("auxiliary"):
            keys, prefix = keys[1:], f"{keys[0]}."
        value = np.asarray(leaf)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensors[prefix + torch_name(network, keys)] = value
    return tensors


def convert(tensors: dict[str, np.ndarray], network: str, template):
    """Convert PyTorch tensors to the variables of a network.

    Args:
      tensors: PyTorch name → tensor; convolutions are OIHW, dense weights [out, in].
      network: name of the network in the registry.
      template: variables {"params", "batch_stats"} of the network, arrays or
        `jax.ShapeDtypeStruct`s.

    Returns:
      Variables like the template, as float32.

    Raises:
      UserError: a tensor is missing, left over or of the wrong shape.
    """
    extra = re.compile(rf"{models.entry(network).torch_extra}|.*num_batches_tracked$")
    used, faults = set(), []

    def take(path, leaf):
        name = torch_name(network, tuple(key.key for key in path[1:]))
        used.add(name)
        if name not in tensors:
            faults.append(f"{name} is missing")
            return leaf
        value = np.asarray(tensors[name], np.float32)
        value = value.transpose((2, 3, 1, 0)) if value.ndim == 4 else value.T
        if value.shape != leaf.shape:
            faults.append(f"{name} gives {value.shape}, the network has {leaf.shape}")
        return value

    variables = jax.tree_util.tree_map_with_path(take, template)
    left_over = sorted(name for name in tensors.keys() - used if not extra.match(name))
    faults += [f"{name} is left over" for name in left_over]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if faults[5:] else "")
        raise UserError(f"these weights are not a {network}'s: {shown}")
    return variables
