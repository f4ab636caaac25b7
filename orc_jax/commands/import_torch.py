"""Turn a PyTorch checkpoint into a saved network."""

from absl import flags

from orc_jax.commands import command_line
from orc_jax.errors import UserError
from orc_jax.trained.import_torch import import_torch


def main() -> None:
    """Run the command."""
    model = flags.DEFINE_string("model", None, "Name of the network.", required=True)
    num_classes = flags.DEFINE_integer("num_classes", None, "Number of classes.", required=True)
    out = flags.DEFINE_string("out", None, "Directory to write; must not exist.", required=True)
    channels = flags.DEFINE_integer("channels", 3, "Channels of the images.")
    mean = flags.DEFINE_list(
        "mean",
        [],
        "Mean of pixel/255 that its images were normalised by, one number or one per channel.",
    )
    std = flags.DEFINE_list("std", [], "Standard deviation of pixel/255, likewise.")
    size = flags.DEFINE_integer("size", 0, "Size of the images; 0 is the network's usual one.")

    def command(file):
        scale = _numbers("mean", mean.value), _numbers("std", std.value)
        settings = (model.value, num_classes.value, out.value, channels.value)
        name, count = import_torch(file, *settings, *scale, size.value)
        print(f"{file} → {out.value}: {name}, {count:,} parameters")

    command_line.run(
        command,
        "FILE",
        example="resnet56.pth --model=resnet56 --num_classes=100 --out=teachers/resnet56",
    )


def _numbers(flag, values):
    try:
        return [float(value) for value in values]
    except ValueError as error:
        raise UserError(f"--{flag} is {','.join(values)}, allowed: numbers") from error
