"""Exports, and predictions from them, from runs and from saved networks."""

import csv
import importlib.util
import io
import json
import re
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import run_command, run_here
from flax import traverse_util
from PIL import Image

import orc_jax
from benchmarks import torch_group
from configs import digits
from orc_jax import models
from orc_jax.commands import predict
from orc_jax.data import digits as data
from orc_jax.data import preprocessing
from orc_jax.errors import UserError
from orc_jax.models.convolution import made_for
from orc_jax.models.layers import avg_pool, conv, max_pool
from orc_jax.runtime import display, metrics
from orc_jax.trained import formats, model_card, networks, torch_weights
from orc_jax.trained.export import export
from orc_jax.trained.import_torch import import_torch

IMAGES = data.load().test.images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two networks, after an epoch."""
    workdir = tmp_path_factory.mktemp("export") / "run"
    config = digits.get_config("dml:resnet8,resnet8")
    config.epochs, config.mesh.data, config.mesh.peer = 1, 1, 1
    orc_jax.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def best(run):
    """The peer with the highest top-1."""
    return int(np.argmax(metrics.read(run)[-1]["test"]["top1"]))


@pytest.fixture(scope="module")
def exported(run):
    """The best peer, by the command; and what that said."""
    out = run.parent / "exported"
    return out, run_command("-m", "orc_jax.export", f"--workdir={run}", f"--out={out}").stdout


@pytest.fixture(scope="module")
def ensemble(run):
    out = run.parent / "ensemble"
    return out, export(run, out, "ensemble")


def logits_of(run, peer, images=IMAGES):
    """As the README computes them from a saved network."""
    network, variables, about = orc_jax.load_network(run / "networks" / str(peer))
    images = (images / 255 - np.array(about["mean"])) / np.array(about["std"])
    return network.apply(variables, images.astype(np.float32), train=False)


def assert_close(logits, expected):
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_command_says_what_it_wrote_and_the_card_what_that_is(run, best, exported):
    out, said = exported
    about = json.loads((out / "export.json").read_text())
    test = metrics.read(run)[-1]["test"]
    assert about["peer"] == best and about["scores"]["top1"] == test["top1"][best]
    assert about["class_names"] == list("0123456789")
    for name, result in about["files"].items():
        assert name in said
        assert (out / name).exists() == (not isinstance(result, str))
    written = {name for name, result in about["files"].items() if not isinstance(result, str)}
    assert written == formats.FORMS.keys()
    card = (out / "README.md").read_text()
    for fact in (
        "`digits`: 1,437 training and 360 test images",
        "resnet8: 77,754 parameters",
        "`dml` (constant_target True",
        f"top-1 {test['top1'][best]:.2f} %",
        json.loads((run / "run.json").read_text())["command"],
        f"--workdir={run} --peer=best --checkpoint=last --out={out}",
        f"jax {jax.__version__}",
    ):
        assert fact in card
    assert "{" not in card.replace('{"images"', "").replace((out / "classify.py").read_text(), "")


FRESH = """
import sys
import jax.export
import numpy as np
images, out, *programs = sys.argv[1:]
images, logits = np.load(images), []
for program in programs:
    model = jax.export.deserialize(bytearray(open(program, "rb").read()))
    assert model.platforms == ("cpu", "cuda")
    logits += [jax.jit(model.call)(images[:size]) for size in (1, 5)]
np.savez(out, *logits)
assert not {"orc_jax", "flax"} & sys.modules.keys()
"""


def test_stablehlo_in_a_process_that_imports_only_jax(tmp_path, run, best, exported, ensemble):
    np.save(tmp_path / "images.npy", IMAGES)
    expected = jnp.stack([logits_of(run, peer) for peer in (0, 1)])
    mean = jax.nn.softmax(expected).mean(axis=0)
    programs = [str(folder / "model.stablehlo") for folder, _ in (exported, ensemble)]
    run_command("-c", FRESH, str(tmp_path / "images.npy"), str(tmp_path / "out.npz"), *programs)
    found = list(np.load(tmp_path / "out.npz").values())
    for i, logits in enumerate((expected[best], jnp.log(mean))):
        assert_close(found[2 * i], logits[:1])
        assert_close(found[2 * i + 1], logits[:5])


def test_weights_come_back_under_our_names_and_pytorchs(tmp_path, run, best, exported):
    out, _ = exported
    expected, (network, variables, about) = (
        logits_of(run, best),
        orc_jax.load_network(run / "networks" / str(best)),
    )
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    assert tensors.keys() == traverse_util.flatten_dict(variables, sep="/").keys()
    images = (IMAGES / 255 - np.array(about["mean"])) / np.array(about["std"])
    images = images.astype(np.float32)
    ours = traverse_util.unflatten_dict(tensors, sep="/")
    np.testing.assert_array_equal(network.apply(ours, images, train=False), expected)

    import_torch(out / "model.torch.safetensors", "resnet8", 10, tmp_path / "imported", channels=1)
    network, variables, _ = orc_jax.load_network(tmp_path / "imported")
    np.testing.assert_array_equal(network.apply(variables, images, train=False), expected)

    theirs = torch_group.create("resnet8", 10, 1).eval()
    theirs.load_state_dict(safetensors.torch.load_file(out / "model.torch.safetensors"))
    with torch.no_grad():
        output = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert_close(output, expected)


def test_onnx(run, best, exported, ensemble):
    logits = jnp.stack([logits_of(run, peer) for peer in (0, 1)])
    mean = jnp.log(jax.nn.softmax(logits).mean(axis=0))
    for (folder, _), expected in ((exported, logits[best]), (ensemble, mean)):
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        for size in (1, 5):
            (found,) = session.run(["logits"], {"images": IMAGES[:size]})
            assert_close(found, expected[:size])


def test_without_its_packages_onnx_is_left_out_with_the_reason(monkeypatch, tmp_path, run):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    about = export(run, tmp_path / "out", "0")
    assert about["files"]["model.onnx"].startswith("it needs pip install onnx")
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert "left out, it needs pip install onnx" in (tmp_path / "out" / "README.md").read_text()


def test_float16_and_int8_onnx_with_their_accuracy(tmp_path, run, best):
    out, test = tmp_path / "out", data.load().test
    said = run_here("export", f"--workdir={run}", f"--out={out}", "--quantize").stdout
    about, card = json.loads((out / "export.json").read_text()), (out / "README.md").read_text()
    assert list(about["onnx_top1"]) == ["model.onnx", "model.float16.onnx", "model.int8.onnx"]
    sizes = []
    for name, top1 in about["onnx_top1"].items():
        session = onnxruntime.InferenceSession(out / name)
        (logits,) = session.run(["logits"], {"images": test.images})
        assert logits.dtype == np.float32
        assert top1 == pytest.approx(100 * (logits.argmax(axis=1) == test.labels).mean())
        assert top1 == pytest.approx(about["scores"]["top1"], abs=2)
        assert f"{name}: {(out / name).stat().st_size / 2**20:.2f} MiB, top-1 {top1:.2f} %" in said
        assert f"{top1:.2f} % on the test images" in card
        sizes.append((out / name).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.4 * sizes[0]
    kept = run / "data.json"
    data_json = kept.read_text()
    kept.write_text(json.dumps({"test_images": 1}))
    try:
        with pytest.raises(UserError, match="was trained on other images"):
            export(run, tmp_path / "other", quantize=True)
    finally:
        kept.write_text(data_json)
    assert not (tmp_path / "other").exists()


def test_what_a_converter_says_is_no_format(tmp_path, run, monkeypatch):
    def fails(chosen):
        raise formats.Unavailable("KeyError {'axis': 1}")

    monkeypatch.setattr(formats, "FORMS", {"model.onnx": (fails, None)})
    export(run, tmp_path / "out", 0)
    assert "left out, KeyError {'axis': 1}" in (tmp_path / "out" / "README.md").read_text()


def test_all_that_can_be_loaded_predicts_alike_and_as_accurately_as_logged(
    run, best, exported, ensemble
):
    test, labels = metrics.read(run)[-1]["test"], data.load().test.labels
    expected = jax.nn.softmax(logits_of(run, best))
    for place in (exported[0], run, run / "networks" / str(best)):
        model = orc_jax.load(place)
        found = model.predict(IMAGES)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_allclose(model.predict(IMAGES[:3, ..., 0]), expected[:3], atol=1e-4)
        np.testing.assert_allclose(model.predict(IMAGES[:9], 4), expected[:9], atol=1e-4)
        assert 100 * (found.argmax(axis=1) == labels).mean() == pytest.approx(test["top1"][best])
    both = [jax.nn.softmax(logits_of(run, peer)) for peer in (0, 1)]
    found = orc_jax.load(ensemble[0]).predict(IMAGES)
    np.testing.assert_allclose(found, (both[0] + both[1]) / 2, atol=1e-4)
    assert ensemble[1]["scores"]["loss"] == test["ensemble"]["loss"]
    assert "left out" in (ensemble[0] / "README.md").read_text()  # PyTorch has no such network


def test_a_run_that_was_not_finished(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "networks")
    np.testing.assert_array_equal(
        orc_jax.load(copy).predict(IMAGES), orc_jax.load(run).predict(IMAGES)
    )
    (copy / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"up to this checkpoint: export one of 0, 1"):
        orc_jax.load(copy)
    (copy / "run.json").unlink()
    with pytest.raises(UserError, match=r"run.json cannot be read: No such file"):
        networks.from_run(copy, "0")


def test_the_best_peer_is_a_kept_one_of_equal_ones_the_smallest():
    config = digits.get_config("switokd_1t2s:resnet14,resnet14,resnet8")
    variables = [{"params": np.zeros(size)} for size in (3, 2, 1)]
    for top1, expected in (([9, 5, 5], 2), ([9, 6, 5], 1)):
        tested = [{"test": {"top1": top1, "loss": [1, 1, 2]}}]
        assert networks._best(config, variables, tested) == expected
    variables[2] = variables[1]  # of equal size and accuracy, the one with the lower loss
    tested = [{"test": {"top1": [9, 5, 5], "loss": [1, 3, 2]}}]
    assert networks._best(config, variables, tested) == 2


def test_layers_made_for_any_platform_are_xlas_and_compute_the_same():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = conv(8, 1)(conv(8, 3, groups=8)(x))
            return max_pool(avg_pool(x)), max_pool(x, 3), avg_pool(x, 3)

    images = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype(np.float32)
    variables = Layers().init(jax.random.key(0), images)
    outputs, programs = [], []
    for target in ("any", "cpu"):
        with made_for(target):
            run = jax.jit(lambda x, _=target: Layers().apply(variables, x)).lower(images)
        outputs.append(run.compile()(images))
        programs.append(run.as_text())
    for ours, plain in zip(*outputs, strict=True):
        assert_close(ours, plain)
    pools = [program.count("stablehlo.reduce_window") for program in programs]
    convolutions = [program.count("stablehlo.convolution") for program in programs]
    assert pools == [4, 0] and convolutions == [2, 0]


ALONE = """
import runpy
import sys
sys.modules["orc_jax"] = sys.modules["flax"] = None  # their import fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("kind", ["jpg", "rgba.png", "deep.png"])
def test_the_cards_script_prints_what_predict_does_without_this_package(tmp_path, exported, kind):
    out, _ = exported
    script = (out / "classify.py").read_text()
    assert f"```python\n{script}```" in (out / "README.md").read_text()
    pixels = np.asarray(Image.fromarray(IMAGES[3, ..., 0]).resize((61, 33)))
    photo = Image.fromarray(np.stack([pixels, pixels, 255 - pixels], axis=-1))
    photo.getexif()[0x0112] = 6
    if kind == "rgba.png":
        photo.putalpha(Image.fromarray(pixels // 2))
    elif kind == "deep.png":
        photo = Image.fromarray(pixels.astype(np.uint16) * 257)
    file = tmp_path / f"photo.{kind}"
    photo.save(file, exif=photo.getexif())
    shown = run_command("-c", ALONE, str(out / "classify.py"), str(file)).stdout
    ((_, expected),) = predict.predict(orc_jax.load(out), predict.images_of([str(file)]), 1)
    assert shown.splitlines() == [f"{name} {100 * p:.2f} %" for name, p in expected]


@pytest.fixture
def torchvision():
    try:
        import torchvision
    except RuntimeError:
        # The compiled operations of PyPI's wheel need a PyTorch with CUDA. ResNet uses none of
        # them, but the import asks for them.
        folder = Path(importlib.util.find_spec("torchvision").submodule_search_locations[0])
        source = "".join(file.read_text() for file in folder.glob("_*_registrations.py"))
        operations = set(re.findall(r'torchvision::(\w+)|register_meta\("(\w+)"', source))
        library = torch.library.Library("torchvision", "DEF")
        for name in {"".join(names) for names in operations}:
            library.define(f"{name}(Tensor x) -> Tensor")
        import torchvision
    return torchvision


def test_the_cards_lines_of_pytorch_load_torchvisions_resnet18(tmp_path, monkeypatch, torchvision):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18(num_classes=5)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    network = models.create("resnet18", 5)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images / 255, train=False))
    variables = torch_weights.convert(tensors, "resnet18", shapes)
    scale = preprocessing.Preprocessing((64, 64, 3), 0, np.full(3, 0.5), np.full(3, 0.25))
    trained = networks.TrainedNetworks(["resnet18"], [variables], list("abcde"), [scale])
    (tmp_path / "model.torch.safetensors").write_bytes(formats.torch(trained))
    scope = {}
    exec(model_card.in_torch("resnet18", 5, 3), scope)
    normalised = ((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        found = scope["model"](torch.from_numpy(normalised))
    assert_close(found, networks.logits(trained, trained.variables, jnp.asarray(images)))


@pytest.fixture
def files(tmp_path):
    """Images of digits in a folder and below, and one that is none."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b, c.bmp", "below/[d].png")):
        Image.fromarray(IMAGES[i, ..., 0]).save(folder / name)
    (folder / "broken.jpg").write_text("no image")
    return folder


def test_predictions_of_files_by_the_command(tmp_path, files, exported):
    out, _ = exported
    expected = orc_jax.load(out).predict(IMAGES[:3])
    args = ("-m", "orc_jax.predict", str(out), str(files), "--batch_size=2")
    result = run_command(*args, "--format=csv")
    assert result.stderr == f"passed over {files}/broken.jpg: not an image that Pillow can read\n"
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    names = [f"{files}/{name}" for name in ("a.png", "b, c.bmp", "below/[d].png")]
    assert [row["file"] for row in rows] == names
    for row, probabilities in zip(rows, expected, strict=True):
        order = np.argsort(-probabilities)[:5]
        assert [row[f"class_{i}"] for i in range(1, 6)] == [str(c) for c in order]
        found = [float(row[f"probability_{i}"]) for i in range(1, 6)]
        np.testing.assert_allclose(found, probabilities[order], atol=1e-4)


def test_predictions_as_json_and_as_a_table(capsys, files, run):
    found = list(predict.predict(orc_jax.load(run), predict.images_of([str(files / "below")]), 64))
    (image,) = json.loads(predict.as_json(found))
    assert image["file"] == f"{files}/below/[d].png" and len(image["classes"]) == 5
    display.show(predict.as_table(found))
    (best, p), *_ = found[0][1]
    shown = capsys.readouterr().out
    assert f"{best} {100 * p:.2f} %" in shown and "[d].png" in shown


def test_the_commands_mistakes_get_one_line(files, run, exported):
    ours = ("-m", "orc_jax.export", f"--workdir={run}")
    theirs = ("-m", "orc_jax.predict", str(exported[0]), str(files / "broken.jpg"))
    for args, message in (
        ((*ours, f"--out={files}"), "images is not empty and not an export: a.png is in it"),
        (theirs, "1 image: none can be decoded"),
    ):
        result = run_command(*args, check=False)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert message in result.stderr.splitlines()[-1]
        assert result.stderr.count("error: ") == 1
    assert len(list(files.iterdir())) == 4


def test_what_cannot_be_exported_or_loaded(tmp_path, files, run, exported):
    (files / "mine").mkdir()
    (files / "mine" / "README.md").write_text("precious")
    for call, message in (
        (lambda: export(tmp_path, tmp_path / "out"), "is not a work directory"),
        (
            lambda: export(run, tmp_path / "out", "7"),
            "peer is '7', allowed: best, ensemble, 0 to 1",
        ),
        (lambda: export(run, tmp_path / "out", "0", "3"), "no checkpoint '3'"),
        (lambda: export(run, files / "mine"), "mine is not empty and not an export: README.md"),
        (lambda: export(run, files / "a.png"), "a.png cannot be read: Not a directory"),
        (lambda: orc_jax.load(files), "no export, no saved network and no run"),
        (lambda: orc_jax.load(run).predict(IMAGES / 255), "must be uint8 .*, not float64"),
        (lambda: orc_jax.load(run).predict(IMAGES[0]), r"not uint8 \[8, 8, 1, 1\]"),
        (lambda: orc_jax.load(run).predict(IMAGES[:, 1:]), r"not uint8 \[360, 7, 8, 1\]"),
        (lambda: predict.images_of([str(tmp_path / "none.png")]), "no file or folder .*none.png"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    damaged = shutil.copytree(exported[0], tmp_path / "damaged")
    (damaged / "model.stablehlo").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"model.stablehlo cannot be read: .* cut off"):
        orc_jax.load(damaged)
    assert not (tmp_path / "out").exists()


def test_an_older_export_is_replaced_and_a_fault_leaves_it(tmp_path, run, monkeypatch):
    monkeypatch.setattr(formats, "FORMS", {"model.safetensors": formats.FORMS["model.safetensors"]})
    out = tmp_path / "out"
    for peer in ("0", "1"):
        assert export(run, out, peer)["peer"] == int(peer)

    def fails(chosen):
        raise RuntimeError

    monkeypatch.setattr(formats, "FORMS", {"model.safetensors": (fails, None)})
    with pytest.raises(RuntimeError):
        export(run, out, "0")
    assert json.loads((out / "export.json").read_text())["peer"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
