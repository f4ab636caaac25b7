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
{from_files}
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
the variables, with the names of the network's PyTorch program. That program takes normalised images
[B, channels, height, width]:

```python
{torch}
```""",
    "model.onnx": """\
the program, from `images` to `logits`{onnx_top1}:

```python
import numpy as np
import onnxruntime
model = onnxruntime.InferenceSession("model.onnx")
(logits,) = model.run(None, {{"images": np.zeros([1, {shape}], np.uint8)}})
```""",
}

# Networks whose PyTorch program is torchvision's.
TORCHVISION = ("resnet18", "resnet34", "resnet50", "mobilenet_v2")

FROM_FILES = """
    orc-jax predict {folder} image.jpg photos/

With JAX, flatbuffers, NumPy and Pillow alone, `python classify.py IMAGE`:

```python
{classify}```
"""
CLASSIFY = '''\
"""Print the most probable classes of an image file: python classify.py IMAGE"""
import json, pathlib, sys
import jax.export
import numpy as np
from PIL import Image, ImageOps

here = pathlib.Path(__file__).parent
model = jax.export.deserialize(bytearray((here / "model.stablehlo").read_bytes()))
names = json.loads((here / "export.json").read_text())["class_names"]
image = Image.open(sys.argv[1])
image.draft("RGB", ({resize}, {resize}))  # skips resolution of a JPEG that is not needed
image = ImageOps.exif_transpose(image)  # upright
if image.mode.startswith("I"):  # 16 bits
    image = Image.fromarray((np.asarray(image) >> {shift}).clip(0, 255).astype(np.uint8))
if image.has_transparency_data:  # over white
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
image = image.convert("RGB")
# The shorter side becomes {resize} pixels, of which the central {size}×{size} are taken.
width, height = (max({size}, round(side * {resize} / min(image.size))) for side in image.size)
left, top = (width - {size}) // 2, (height - {size}) // 2
x, y = image.width / width, image.height / height
box = (left * x, top * y, (left + {size}) * x, (top + {size}) * y)
image = image.resize(({size}, {size}), Image.Resampling.BILINEAR, box){convert}
logits = np.asarray(model.call(np.asarray(image).reshape(1, {shape})))[0]
for i in np.argsort(-logits)[:5]:
    print(f"{{names[i]}} {{100 / np.exp(logits - logits[i]).sum():.2f}} %")
'''


def classify(images: dict) -> str:
    """Write `classify.py`, a program that needs neither this package nor Flax.

    Args:
      images: preprocessing of the images, as `export.json` has it.
    """
    size, _, channels = images["image_shape"]
    return CLASSIFY.format(
        size=size,
        resize=images["resize"] or size,
        shift=images["bits"] - 8,
        convert="" if channels == 3 else '.convert("L")',
        shape=", ".join(map(str, images["image_shape"])),
    )


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
        "torch": in_torch(about["networks"][0], len(about["class_names"]), channels),
        "onnx_top1": _top1(about["onnx_top1"].get("model.onnx")),
        "from_files": FROM_FILES.format(folder=folder, classify=classify(images))
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
    for file, top1 in about["onnx_top1"].items():
        if file not in about["files"]:
            kind = file.split(".")[1]
            facts["files"] += f"\n\n**{file}**: the same in {kind}{_top1(top1)}."
    return CARD.format(**facts)


def in_torch(network: str, num_classes: int, channels: int) -> str:
    """Write lines of Python that load `model.torch.safetensors` in PyTorch as `model`.

    Args:
      network: name of the network.
      num_classes: number of classes.
      channels: channels of the images.
    """
    lines = ["from safetensors.torch import load_file"]
    if network in TORCHVISION and channels == 3:
        lines.insert(0, "import torchvision")
        lines.append(f"model = torchvision.models.{network}(num_classes={num_classes}).eval()")
    else:
        lines.append(f"model = ...  # the published program of {network}, {num_classes} classes")
    return "\n".join([*lines, 'model.load_state_dict(load_file("model.torch.safetensors"))'])


def _top1(top1):
    return "" if top1 is None else f", top-1 {top1:.2f} % on the test images"


def _shortened(names, most=20):
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if names[most:] else shown


def _accuracy(about):
    scores = about["scores"]
    if not scores:
        return f"Not evaluated; the weights are those of step {about['step']}."
    split = {"test": "test", "val": "validation"}[scores["split"]]
    top5 = f"top-5 {scores['top5']:.2f} %, " if len(about["class_names"]) > 5 else ""
    return (
        f"On the {split} images: top-1 {scores['top1']:.2f} %, {top5}"
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
        f"Of an image file, the shorter side is scaled to {images['resize'] or width} pixels "
        f"(Pillow's bilinear filter), and the central {height}×{width} pixels are taken."
    )


def _versions(versions):
    return ", ".join(f"{name} {version}" for name, version in versions.items())
