"""`python -m orc_jax.import_torch FILE --model=… --num_classes=… --out=DIR`: PyTorch weights
become a saved network, which `peers[i].init_from` and `orc_jax.load_network` take; with the mean
and standard deviation that its program normalised images by, the other commands too."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import models
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.trained import saved, torch_weights


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
      out: directory to be made, see `saved.save`.
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
    smallest, size = models.entry(model).smallest, size or models.entry(model).size
    if size < smallest:
        raise UserError(f"size is {size}, allowed for {model}: {smallest} or more")
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    template = jax.eval_shape(
        lambda key, images: network.init(key, images, train=False), jax.random.key(0), images
    )
    variables = torch_weights.convert(torch_weights.load(file), model, template)
    description = {"network": model, "num_classes": num_classes, "source": Path(file).name}
    if mean:
        scale = (np.broadcast_to(values, channels) for values in (mean, std))
        description["class_names"] = [str(c) for c in range(num_classes)]
        description |= Preprocessing((size, size, channels), 0, *scale).to_json()
    try:
        saved.save(out, variables, description)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return model, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
