"""Export a trained network to files that other programs read."""

import json
import shutil
from pathlib import Path

import jax

from orc_jax import prepare
from orc_jax.data.decode import come_from_files
from orc_jax.errors import UserError
from orc_jax.runtime import files as text_files
from orc_jax.runtime.checkpoints import read_config
from orc_jax.runtime.versions import versions
from orc_jax.runtime.workdir import began, check_writable
from orc_jax.trained import formats, model_card, networks, quantized

FILES = {*formats.FORMS, *quantized.FILES, "export.json", "README.md", "classify.py"}


def export(
    workdir: str | Path,
    out: str | Path,
    peer: str | int = "best",
    checkpoint: str = "last",
    quantize: bool = False,
    data_dir: str = "",
) -> dict:
    """Write a network of a run, or the ensemble, in every format that it has.

    The directory is replaced as a whole, or left as it is if an error is raised.

    Args:
      workdir: work directory of the run.
      out: directory to write; an older export there is replaced.
      peer, checkpoint: see `networks.from_run`.
      quantize: whether to write ONNX in float16 and int8 too, and to evaluate the ONNX programs
        on the test images; this needs the run's data.
      data_dir: folder of the data set, if it has moved since the training.

    Returns:
      The content of `export.json`.

    Raises:
      UserError: there is no such run, checkpoint, peer or data, the network cannot be quantised,
        `out` cannot be written, or it is neither empty nor an export.
    """
    directory = Path(out).absolute()
    try:
        files = {file.name for file in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}") from error
    foreign = files - FILES if "export.json" in files else files
    if foreign:
        raise UserError(
            f"{directory} is not empty and not an export: {sorted(foreign)[0]} is in it"
        )
    check_writable(directory.parent, "the folder of --out")
    peer = str(peer)
    trained, run = networks.from_run(workdir, peer, checkpoint), began(workdir)
    data = text_files.read_json(Path(workdir) / "data.json", "the data.json of a run")
    count = quantized.CALIBRATION
    images = prepare.sample_and_test(workdir, count, data_dir) if quantize else ()
    new, old = (directory.with_name(f".{directory.name}.{suffix}") for suffix in ("new", "old"))
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        parameters = [variables["params"] for variables in trained.variables]
        about = {
            "networks": trained.networks,
            "peer": trained.peer,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
            "class_names": trained.class_names,
            "images": trained.images[0].to_json(),
            "scales": [images.scale() for images in trained.images],
            "step": trained.step,
            "scores": trained.scores,
            "files": formats.write(trained, new),
            "onnx_top1": quantized.write(trained, new, *images) if quantize else {},
            "command": f"orc-jax export --workdir={workdir} --peer={peer} "
            f"--checkpoint={checkpoint} --out={out}" + " --quantize" * quantize,
            "versions": versions(),
            "training": {"command": run.command, "versions": run.versions},
            "data": data,
            "config": json.loads(read_config(workdir).to_json()),
        }
        (new / "export.json").write_text(text_files.to_json(about), encoding="utf-8")
        if come_from_files(trained.images[0].image_shape):
            (new / "classify.py").write_text(model_card.classify(about["images"]))
        (new / "README.md").write_text(model_card.text(about, directory.name), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if directory.exists():
            directory.replace(old)
        new.replace(directory)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return about
