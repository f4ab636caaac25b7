"""Write a trained network as StableHLO, safetensors and ONNX."""

from pathlib import Path

from absl import flags

from orc_jax.commands import command_line
from orc_jax.runtime import display
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
    quantize = flags.DEFINE_bool(
        "quantize",
        False,
        "Whether to write ONNX in float16 and int8 too, and to evaluate it on the test images.",
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Directory of the data, if it was moved.")

    def command():
        settings = peer.value, checkpoint.value, quantize.value, data_dir.value
        about = export(workdir.value, out.value, *settings)
        who = "ensemble" if about["peer"] == "ensemble" else f"peer {about['peer']}"
        display.say(
            f"{workdir.value}, step {about['step']}: {who} ({', '.join(about['networks'])})"
        )
        for name, result in about["files"].items():
            if isinstance(result, str):
                display.say(f"  {name}: left out, {result}")
                continue
            size = (Path(out.value) / name).stat().st_size / 2**20
            display.say(f"  {name}: {size:.2f} MiB, logits within {result:.1e} of the network's")
        for name, top1 in about["onnx_top1"].items():
            size = (Path(out.value) / name).stat().st_size / 2**20
            display.say(f"  {name}: {size:.2f} MiB, top-1 {top1:.2f} % on the test images")
        display.say(f"→ {out.value}, described in its README.md")

    command_line.run(command, example="--workdir=runs/digits-orc --out=exports/digits")
