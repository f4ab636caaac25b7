"""`python -m orc_jax import-torch FILE --model=… --num_classes=… --out=DIR`."""

from absl import flags

from orc_jax.commands import command_line
from orc_jax.errors import UserError
from orc_jax.trained.import_torch import import_torch


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

    command_line.run(command, "FILE")


def _numbers(flag, values):
    try:
        return [float(value) for value in values]
    except ValueError as error:
        raise UserError(f"--{flag} is {','.join(values)}, allowed: numbers") from error
