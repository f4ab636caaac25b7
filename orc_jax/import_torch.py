"""`python -m orc_jax.import_torch FILE --model=… --num_classes=… --out=DIR`: PyTorch weights
become a saved network, which `peers[i].init_from` and `orc_jax.load_network` take."""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from orc_jax import commands, models, networks, torch_weights
from orc_jax.errors import UserError


def import_torch(
    file: str | Path, model: str, num_classes: int, out: str | Path, channels: int = 3
) -> tuple[str, int]:
    """Saves a PyTorch file's weights as a network of ours.

    Args:
      file: .pth, .pt or .safetensors, see `torch_weights.load`.
      model: the network's name.
      num_classes: outputs C.
      out: directory to be made, see `networks.save`.
      channels: of the images.

    Returns:
      The network's name in the registry's spelling, and its number of parameters.

    Raises:
      UserError: the file holds no such network's weights, or `out` exists.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already")
    if num_classes < 1 or channels < 1:
        raise UserError(f"num_classes is {num_classes}, channels is {channels}, allowed: 1 or more")
    model = models.canonical(model)
    network = models.create(model, num_classes)
    size = models.NETWORKS[model].size
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    template = jax.eval_shape(
        lambda key, images: network.init(key, images, train=False), jax.random.key(0), images
    )
    variables = torch_weights.convert(torch_weights.load(file), model, template)
    description = {"network": model, "num_classes": num_classes, "source": Path(file).name}
    networks.save(out, variables, description)
    return model, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def main() -> None:
    """The command line."""
    model = flags.DEFINE_string("model", None, "Name of the network.", required=True)
    num_classes = flags.DEFINE_integer("num_classes", None, "Classes.", required=True)
    out = flags.DEFINE_string("out", None, "Directory to be made.", required=True)
    channels = flags.DEFINE_integer("channels", 3, "Channels of the images.")

    def command(file):
        name, count = import_torch(file, model.value, num_classes.value, out.value, channels.value)
        print(f"{file} → {out.value}: {name}, {count:,} parameters")

    commands.run(command, "FILE")


if __name__ == "__main__":
    main()
