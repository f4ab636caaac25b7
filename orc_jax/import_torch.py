"""`python -m orc_jax.import_torch FILE --model=… --num_classes=… --out=DIR`: PyTorch weights
become a saved network, which `peers[i].init_from` and `orc_jax.load_network` take; with the mean
and standard deviation that its program normalised images by, the other commands too."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from orc_jax import commands, models, networks, torch_weights
from orc_jax.errors import UserError


def import_torch(
    file: str | Path,
    model: str,
    num_classes: int,
    out: str | Path,
    channels: int = 3,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    size: int = 0,
) -> tuple[str, int]:
    """Saves a PyTorch file's weights as a network of ours.

    Args:
      file: .pth, .pt or .safetensors, see `torch_weights.load`.
      model: the network's name.
      num_classes: outputs C.
      out: directory to be made, see `networks.save`.
      channels: of the images.
      mean, std: [channels] of pixel/255, by which its program normalised images, or one number
        for all channels; if they are not given, the network can only be trained further.
      size: of its images; 0: the network's usual one.

    Returns:
      The network's name in the registry's spelling, and its number of parameters.

    Raises:
      UserError: the file holds no such network's weights, `out` exists, or mean and std are not
        of so many channels.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already")
    if num_classes < 1 or channels < 1:
        raise UserError(f"num_classes is {num_classes}, channels is {channels}, allowed: 1 or more")
    lengths = {len(mean), len(std)}
    if lengths not in ({0}, {1}, {channels}) or any(value <= 0 for value in std):
        raise UserError(
            f"mean is {list(mean)}, std is {list(std)}, allowed: one number each or {channels}, "
            "std above 0"
        )
    model = models.canonical(model)
    network = models.create(model, num_classes)
    smallest, size = models.NETWORKS[model].smallest, size or models.NETWORKS[model].size
    if size < smallest:
        raise UserError(f"size is {size}, allowed for {model}: {smallest} or more")
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    template = jax.eval_shape(
        lambda key, images: network.init(key, images, train=False), jax.random.key(0), images
    )
    variables = torch_weights.convert(torch_weights.load(file), model, template)
    description = {"network": model, "num_classes": num_classes, "source": Path(file).name}
    if mean:
        description |= {
            "class_names": [str(c) for c in range(num_classes)],
            "image_shape": [size, size, channels],
            "resize": 0,
            "mean": list(np.broadcast_to(mean, channels)),
            "std": list(np.broadcast_to(std, channels)),
        }
    try:
        networks.save(out, variables, description)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return model, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def main() -> None:
    """The command line."""
    model = flags.DEFINE_string("model", None, "Name of the network.", required=True)
    num_classes = flags.DEFINE_integer("num_classes", None, "Classes.", required=True)
    out = flags.DEFINE_string("out", None, "Directory to be made.", required=True)
    channels = flags.DEFINE_integer("channels", 3, "Channels of the images.")
    mean = flags.DEFINE_list("mean", [], "Of pixel/255, as its program normalised images.")
    std = flags.DEFINE_list("std", [], "Their standard deviation.")
    size = flags.DEFINE_integer("size", 0, "Of the images; default: the network's usual one.")

    def command(file):
        scale = _numbers("mean", mean.value), _numbers("std", std.value)
        given = (model.value, num_classes.value, out.value, channels.value)
        name, count = import_torch(file, *given, *scale, size.value)
        print(f"{file} → {out.value}: {name}, {count:,} parameters")

    commands.run(command, "FILE")


def _numbers(flag, values):
    try:
        return [float(value) for value in values]
    except ValueError as error:
        raise UserError(f"--{flag} is {','.join(values)}, allowed: numbers") from error


if __name__ == "__main__":
    main()
