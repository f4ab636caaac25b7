"""`python -m orc_jax.export --workdir=RUN --out=DIR`: a trained network to be used elsewhere."""

import json
import shutil
from pathlib import Path

import jax
from absl import flags
from rich.console import Console

from orc_jax import card, commands, forms, inference
from orc_jax.checkpoint import read_config
from orc_jax.errors import UserError
from orc_jax.versions import versions

FILES = {*forms.FORMS, "export.json", "README.md"}


def export(
    workdir: str | Path, out: str | Path, peer: str | int = "best", checkpoint: str = "last"
) -> dict:
    """Writes a run's network, or the ensemble, in every form that it has; all of it or nothing.

    Args:
      workdir: of the run.
      out: directory to be made; an older export there is replaced.
      peer, checkpoint: see `inference.from_run`.

    Returns:
      What `export.json` says.

    Raises:
      UserError: there is no such network, or `out` is something else.
    """
    given, out = out, Path(out).absolute()
    try:
        there = {file.name for file in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror}") from error
    others = there - FILES if "export.json" in there else there
    if others:
        raise UserError(f"{out} is not empty and not an export: {sorted(others)[0]} is in it")
    peer = str(peer)
    chosen, run = inference.from_run(workdir, peer, checkpoint), inference.began(workdir)
    data = json.loads((Path(workdir) / "data.json").read_text())
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        parameters = [variables["params"] for variables in chosen.variables]
        about = {
            "networks": chosen.networks,
            "peer": chosen.peer,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
            "class_names": chosen.class_names,
            "images": chosen.images,
            "step": chosen.step,
            "scores": chosen.scores,
            "files": forms.write(chosen, new),
            "command": f"python -m orc_jax.export --workdir={workdir} --peer={peer} "
            f"--checkpoint={checkpoint} --out={given}",
            "versions": versions(),
            "training": {key: run[key] for key in ("command", "versions") if key in run},
            "data": data,
            "config": json.loads(read_config(workdir).to_json()),
        }
        (new / "export.json").write_text(json.dumps(about, indent=2) + "\n")
        (new / "README.md").write_text(card.text(about, out.name), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.replace(old)
        new.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return about


def main() -> None:
    """The command line."""
    workdir = flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    out = flags.DEFINE_string("out", None, "Directory to be made.", required=True)
    peer = flags.DEFINE_string("peer", "best", "best, ensemble, or a peer's position.")
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "last, best, or the step of a checkpoint."
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

    commands.run(command)


if __name__ == "__main__":
    main()
