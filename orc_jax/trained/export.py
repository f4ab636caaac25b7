"""`python -m orc_jax.export --workdir=RUN --out=DIR`: a trained network to be used elsewhere."""

import json
import shutil
from pathlib import Path

import jax

from orc_jax.errors import UserError
from orc_jax.runtime.checkpoints import read_config
from orc_jax.runtime.versions import versions
from orc_jax.runtime.workdir import began
from orc_jax.trained import formats, model_card, networks

FILES = {*formats.FORMS, "export.json", "README.md"}


def export(
    workdir: str | Path, out: str | Path, peer: str | int = "best", checkpoint: str = "last"
) -> dict:
    """Writes a run's network, or the ensemble, in every form that it has; all of it or nothing.

    Args:
      workdir: of the run.
      out: directory to be made; an older export there is replaced.
      peer, checkpoint: see `networks.from_run`.

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
    chosen, run = networks.from_run(workdir, peer, checkpoint), began(workdir)
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
            "images": chosen.images.to_json(),
            "step": chosen.step,
            "scores": chosen.scores,
            "files": formats.write(chosen, new),
            "command": f"python -m orc_jax.export --workdir={workdir} --peer={peer} "
            f"--checkpoint={checkpoint} --out={given}",
            "versions": versions(),
            "training": {"command": run.command, "versions": run.versions},
            "data": data,
            "config": json.loads(read_config(workdir).to_json()),
        }
        (new / "export.json").write_text(json.dumps(about, indent=2) + "\n")
        (new / "README.md").write_text(model_card.text(about, out.name), encoding="utf-8")
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
