"""Write a trained network as StableHLO, safetensors and ONNX."""

from pathlib import Path

from absl import flags
from rich.console import Console

from orc_jax.commands import command_line
from orc_jax.trained.export import export


def main() -> None:
    """Run the command."""
    workdir = flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    out = flags.DEFINE_string(
        "out", None, "Directory to write; an older export there is replaced.", required=True
    )
    peer = flags.DEFINE_string(
        "peer", "best", "Network to export: best, ensemble, or a peer's position."
    )
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "Checkpoint to use: last, best, or its step."
    )

    def command():
        about = export(workdir.value, out.value, peer.value, checkpoint.value)
        who = "ensemble" if about["peer"] == "ensemble" else f"peer {about['peer']}"
        say = Console(highlight=False, markup=False, soft_wrap=True).print
        say(f"{workdir.value}, step {about['step']}: {who} ({', '.join(about['networks'])})")
        for name, result in about["files"].items():
            if isinstance(result, str):
                say(f"  {name}: left out, {result}")
                continue
            size = (Path(out.value) / name).stat().st_size / 2**20
            say(f"  {name}: {size:.2f} MiB, logits within {result:.1e} of the network's")
        say(f"→ {out.value}, described in its README.md")

    command_line.run(command, example="--workdir=runs/digits-orc --out=exports/digits")
