"""The model card of an export, `README.md`."""

import numpy as np

from orc_jax.data.decode import come_from_files

CARD = """\
# {networks}

An image classifier of {classes} classes: {who}, trained by `{method}` and exported by orc_jax.

## Data

`{data}`: {train:,} training and {test:,} test images. Classes: {class_names}.

## Networks

{networks}: {parameters:,} parameters. The group that trained together: {group}.

## Method

`{method}` ({settings}), {epochs} epochs, batch {batch}, {optimizer}. `export.json` has the whole
config.

## Accuracy

{accuracy}

## Input and output

Images: uint8 [B, {shape}] (height, width, channels), 0 to 255, for any B. {scaling}
(x / 255 − mean) / std with {scale} is part of the StableHLO and ONNX programs.

{output} [B, {classes}]; their softmax gives the probabilities. All computation is in float32.

## Files

{files}

With orc_jax:

```python
import orc_jax
model = orc_jax.load("{folder}")
probabilities = model.predict(images)  # uint8 [B, {shape}] → [B, {classes}]
```
{predict}
## Commands

    {training}
    {export}

## Versions

Training: {training_versions}. Export: {versions}.
"""

USES = {
    "model.stablehlo": """\
the program, for CPUs and NVIDIA GPUs. It needs only JAX and flatbuffers. Versions of JAX after
{jax} read it for as long as `jax.export` guarantees, which is at least six months:

```python
import jax.export
import numpy as np
model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
logits = model.call(np.zeros([1, {shape}], np.uint8))
```""",
    "model.safetensors": """\
the variables, with the names of orc_jax; `flax.traverse_util.unflatten_dict(tensors, sep="/")`
gives those of `orc_jax.models.create(name, {classes})`.""",
    "model.torch.safetensors": """\
the variables, with the names of the network's PyTorch program, for its `load_state_dict`. That
program takes normalised images [B, channels, height, width].""",
    "model.onnx": """\
the program, from `images` to `logits`, made by jax2onnx:

```python
import numpy as np
import onnxruntime
model = onnxruntime.InferenceSession("model.onnx")
(logits,) = model.run(None, {{"images": np.zeros([1, {shape}], np.uint8)}})
```""",
}


def text(about: dict, folder: str) -> str:
    """Write the model card.

    Args:
      about: content of `export.json`.
      folder: name of the export's directory.
    """
    config, images, training = about["config"], about["images"], about["training"]
    ensemble = about["peer"] == "ensemble"
    height, width, channels = images["image_shape"]
    from_files = come_from_files((height, width, channels))
    method = dict(config["method"])
    facts = {
        "networks": ", ".join(about["networks"]),
        "classes": len(about["class_names"]),
        "who": f"the ensemble of {len(about['networks'])} networks"
        if ensemble
        else f"peer {about['peer']} of a group of {len(config['peers'])}",
        "method": method.pop("name"),
        "settings": ", ".join(f"{key} {value}" for key, value in method.items()) or "no settings",
        "data": config["data"]["name"],
        # Checksums of arrays begin with the shape, those of files with the number of images.
        "train": int(np.ravel(about["data"]["train_labels"][0])[0]),
        "test": int(np.ravel(about["data"]["test_labels"][0])[0]),
        "class_names": _shortened(about["class_names"]),
        "parameters": about["parameters"],
        "group": ", ".join(peer["model"] for peer in config["peers"]),
        "epochs": config["epochs"],
        "batch": config["batch_size"],
        "optimizer": config["optimizer"]["name"],
        "accuracy": _accuracy(about),
        "shape": ", ".join(map(str, images["image_shape"])),
        "scaling": _scaling(images) if from_files else "",
        "scale": _scale(about["scales"]),
        "output": "Logarithms of the mean of the networks' softmax outputs"
        if ensemble
        else "Logits",
        "folder": folder,
        "predict": f"\n    python -m orc_jax.predict {folder} image.jpg folder/\n"
        if from_files
        else "",
        "training": training["command"],
        "export": about["command"],
        "training_versions": _versions(training["versions"]),
        "versions": _versions(about["versions"]),
        "jax": about["versions"]["jax"],
    }
    uses = {file: use.format(**facts) for file, use in USES.items()}
    facts["files"] = "\n\n".join(
        f"**{file}**: " + (f"left out, {result}" if isinstance(result, str) else uses[file])
        for file, result in about["files"].items()
    )
    return CARD.format(**facts)


def _shortened(names, most=20):
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if names[most:] else shown


def _accuracy(about):
    scores = about["scores"]
    if not scores:
        return f"Not evaluated; the weights are those of step {about['step']}."
    split = {"test": "test", "val": "validation"}[scores["split"]]
    return (
        f"On the {split} images: top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, "
        f"cross-entropy {scores['loss']:.4f}, evaluated at step {scores['step']}; the weights are "
        f"those of step {about['step']}."
    )


def _scale(scales):
    """Describe the normalisation, which may be another for each network of an ensemble."""
    texts = [
        "mean {mean} and std {std}".format(
            **{name: [round(value, 4) for value in values] for name, values in scale.items()}
        )
        for scale in scales
    ]
    if len(set(texts)) == 1:
        return texts[0]
    return ", ".join(f"{text} for network {i}" for i, text in enumerate(texts))


def _scaling(images):
    height, width, _ = images["image_shape"]
    return (
        f"Of an image file, the shorter side is scaled to {images['resize'] or width} pixels, and "
        f"the central {height}×{width} pixels are taken."
    )


def _versions(versions):
    return ", ".join(f"{name} {version}" for name, version in versions.items())
