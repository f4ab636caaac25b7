"""Conversion between the weights of published PyTorch networks and Flax variables.

The tensors' names are those of each network's own program, see its file in models/. Every tensor
of the network must be there with the right shape, and none may be left over.
"""

import argparse
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import models, peers
from orc_jax.errors import UserError
from orc_jax.runtime import display

# Classes that checkpoints hold besides tensors and Python's own types: options and NumPy scalars.
_NUMBER = np.float64(0).__reduce__()[0]
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
    (_NUMBER, "numpy.core.multiarray.scalar"),  # written by NumPy 1
    (_NUMBER, "numpy._core.multiarray.scalar"),
]
# Names under which programs put the tensors into a larger dict, the preferred ones first.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net"),
    *("state_dict_ema", "model_ema", "ema_state_dict"),
)
# Of the names of all tensors: from DataParallel, torch.compile and averaged models.
PREFIXES = ("module.", "_orig_mod.", "model.")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors or PyTorch file, which its content tells, not its name.

    PyTorch files need torch, and are read with `weights_only=True`, which refuses files that would
    run code. Wrappers such as {"state_dict": …} and prefixes such as "module." are removed.
    Whatever else is in a wrapper (an epoch, the state of an optimizer, the options of an
    `argparse.Namespace`) is ignored. Averaged weights are taken if there are no others; if there
    are, a line says so.

    Args:
      path: the file.

    Returns:
      PyTorch name → tensor; floating-point tensors are float32.

    Raises:
      UserError: there is no such file, it holds more than tensors, or torch is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if head[8:] == b"{":  # after the length of a header
        tensors = _load_safetensors(path)
    elif head.startswith((b"PK", b"\x80")):  # an archive, or the pickle of older versions
        tensors = _load_torch(path)
    else:
        raise UserError(f"{path} holds no weights: it is neither a safetensors nor a PyTorch file")
    tensors = {name: value for name, value in tensors.items() if name != "n_averaged"}
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _load_safetensors(path):
    import safetensors
    from safetensors.flax import load_file  # NumPy's loader does not know bfloat16

    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error
    is_float = {name: jnp.issubdtype(x.dtype, jnp.floating) for name, x in tensors.items()}
    return {
        name: np.asarray(x.astype(jnp.float32) if is_float[name] else x)
        for name, x in tensors.items()
    }


def _load_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch to be read: pip install torch") from error
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of what it then refuses
                tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch raises a dozen exceptions here, which mean the same to the user.
            asks_for = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = (
                f"it asks for {asks_for[1]}" if asks_for else "it is damaged or of another kind"
            )
            raise UserError(f"{path} is not a checkpoint of plain tensors: {reason}") from error
    while isinstance(tensors, dict):
        wrapped = [name for name in WRAPPERS if isinstance(tensors.get(name), dict)]
        if not wrapped:
            break
        if len(wrapped) > 1:
            display.say(f"{path}: took {wrapped[0]!r}, not {', '.join(map(repr, wrapped[1:]))}")
        tensors = tensors[wrapped[0]]
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise UserError(f"{path} is not a state dict: it holds more than named tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise UserError(f"{path} is not a state dict: {name!r} is not the name of a tensor")
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "without content (on the device 'meta')": tensor.is_meta,
            "quantised": tensor.is_quantized,
            "complex": tensor.is_complex(),
        }
        for kind, is_it in kinds.items():
            if is_it:
                raise UserError(f"{path} cannot be used: its tensor {name} is {kind}")
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


def without_classifier(tensors: dict, network: str, template) -> dict:
    """Leave out the tensors of a network's last dense layer; see `convert` for the arguments."""
    name = peers.classifier(template["params"])
    if name is None:
        raise UserError(f"the head of {network} has no dense layer named fc to leave out")
    keys = template["params"]["head"][name]
    left_out = {torch_name(network, ("head", name, key)) for key in keys}
    return {key: value for key, value in tensors.items() if key not in left_out}


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
