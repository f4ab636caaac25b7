"""Import PyTorch weights as a saved network, for `peers[i].init_from` and `orc_jax.load_network`.

With the mean and standard deviation that its images were normalised by, the commands that use
trained networks take it too.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import models
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import UserError
from orc_jax.runtime.workdir import check_saveable
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
    """Save the weights of a PyTorch file as a network.

    Args:
      file: .pth, .pt or .safetensors, see `torch_weights.load`.
      model: name of the network.
      num_classes: number of outputs C.
      out: directory to write, see `saved.save`; it must not exist.
      channels: number of channels of the images.
      mean, std: mean and standard deviation of pixel/255 that its images were normalised by, one
        number or one for each channel; without them, the network can only be trained further.
      size: height and width of its images in pixels; 0 is the network's usual size.

    Returns:
      The name of the network in the registry's spelling, and its number of parameters.

    Raises:
      UserError: an argument is out of range, the file does not hold the weights of this network,
        or `out` exists or cannot be written.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already")
    check_saveable(Path(out), "--out")
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
        description["class_names"] = [str(c) for c in range(num_classes)]
        own = (np.broadcast_to(mean, channels), np.broadcast_to(std, channels))
        description |= Preprocessing((size, size, channels), 0, own[0], own[1]).to_json()
    try:
        saved.save(out, variables, description)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return model, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
