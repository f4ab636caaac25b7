"""List the networks, with their parameters and multiply-adds."""

import jax
from absl import flags
from rich.table import Table

from orc_jax import models
from orc_jax.commands import command_line
from orc_jax.models.costs import CLASSES, cost, latency
from orc_jax.runtime import display


def main() -> None:
    """Run the command."""
    measure = flags.DEFINE_bool("latency", False, "Whether to measure the time for one image too.")

    def command():
        table = Table(title="Networks, by name")
        columns = ["network", "image", "classes", "parameters", "multiply-adds"]
        for i, column in enumerate(columns + ["ms an image"] * measure.value):
            table.add_column(column, justify="right" if i else "left")
        for name, entry in models.NETWORKS.items():
            parameters, multiply_adds = cost(name)
            row = [name, f"{entry.size}×{entry.size}", f"{CLASSES[entry.size]}"]
            row += [f"{parameters / 1e6:.2f} M", f"{multiply_adds / 1e6:.1f} M"]
            if measure.value:
                row.append(f"{latency(name):.1f}")
            table.add_row(*row)
        display.show(table)
        if measure.value:
            print(f"ms: one image at a time, median of 30, {jax.devices()[0].device_kind}")

    command_line.run(command, example="--latency")
