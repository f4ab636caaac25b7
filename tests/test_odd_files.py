"""Files that are not what their names say: one line each, and nothing hangs or runs."""

import json
import os
import pickle
import shutil

import jax
import numpy as np
import pytest
from conftest import run_here, tiny_config, tiny_data
from PIL import Image

import orc_jax
from orc_jax.data import cifar, decode, faults, folder
from orc_jax.errors import UserError
from orc_jax.trained import torch_weights
from orc_jax.trained.export import export
from orc_jax.trained.predicting import images_of

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, and the export of its best peer."""
    place = tmp_path_factory.mktemp("odd")
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = 1
    orc_jax.train(config, place / "run", tiny_data())
    export(place / "run", place / "export", "0")
    return place


def changed(about, **changes):
    return json.dumps(about | changes)


NAMES = [str(i) for i in range(5)]
NETWORK = {
    "mean of None": ({"mean": None}, "mean is None, allowed: 1 finite numbers"),
    "mean of a text": ({"mean": ["x"]}, "mean is .*, allowed: 1 finite numbers"),
    "too long a mean": ({"mean": [0.1, 0.2, 0.3]}, "mean is .*, allowed: 1 finite numbers"),
    "zero std": ({"std": [0]}, r"std is \[0\], allowed: 1 finite numbers above 0"),
    "no shape": ({"image_shape": [8, 8]}, r"image_shape is \[8, 8\], allowed: \[height"),
    "a shape of texts": ({"image_shape": ["8", 8, 1]}, "image_shape is .*, allowed: "),
    "resize": ({"resize": "no"}, "resize is no, allowed: whole numbers from 0"),
    "other class names": ({"class_names": NAMES[:3]}, "num_classes is 5, but there are 3 class_na"),
    "no class names": ({"class_names": []}, "class_names is .*, allowed: the names of the"),
    "names of numbers": ({"class_names": [1, 2, 3, 4, 5]}, "class_names is .*, allowed: the names"),
    "classes": ({"num_classes": 7, "class_names": [*NAMES, "5", "6"]}, "holds other weights than"),
    "no number": ({"num_classes": None}, "num_classes is None, allowed: whole numbers from 1"),
    "network": ({"network": "resnet999"}, "unknown network 'resnet999': did you mean"),
    "another network": ({"network": "pixels_wide"}, "holds other weights than those of a pixels_w"),
}


@pytest.mark.parametrize("kind", NETWORK)
def test_a_network_json_that_does_not_fit(exported, tmp_path, kind):
    changes, message = NETWORK[kind]
    network = shutil.copytree(exported / "run" / "networks" / "0", tmp_path / "0")
    about = network / "network.json"
    about.write_text(changed(json.loads(about.read_text()), **changes))
    for load in (orc_jax.load, orc_jax.load_network):
        with pytest.raises(UserError, match=message):
            load(network)


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[]", b"{", b'{"mean": [NaN]}', b"{}"])
@pytest.mark.parametrize("name", ["network.json", "export.json"])
def test_descriptions_that_are_garbage(exported, tmp_path, name, content):
    source = exported / ("export" if name == "export.json" else "run/networks/0")
    place = shutil.copytree(source, tmp_path / "copy")
    (place / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        orc_jax.load(place)
    result = run_here("predict", str(place), str(exported / "run" / "config.json"))
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1


def test_an_export_json_of_another_program(exported, tmp_path):
    place = shutil.copytree(exported / "export", tmp_path / "export")
    about = json.loads((place / "export.json").read_text())
    images = about["images"]
    for changes in (
        {"class_names": NAMES[:4]},
        {"images": images | {"image_shape": [9, 8, 1]}},
    ):
        (place / "export.json").write_text(changed(about, **changes))
        with pytest.raises(UserError, match=r"export.json is not of model.stablehlo: it says"):
            orc_jax.load(place)
    for changes in ({"images": None}, {"images": 3}, {"images": images | {"std": [-1.0]}}):
        (place / "export.json").write_text(changed(about, **changes))
        with pytest.raises(UserError, match=r"export.json: "):
            orc_jax.load(place)
    (place / "export.json").write_text(json.dumps(about))
    (place / "model.stablehlo").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"model.stablehlo cannot be read"):
        orc_jax.load(place)


def test_pytorch_files_of_odd_tensors(tmp_path, recwarn):
    torch = pytest.importorskip("torch")
    weight = torch.eye(3)
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    del recwarn.list[:]
    for content, message in (
        ({0: weight}, "is not a state dict: 0 is not the name of a tensor"),
        ({"w": weight.to_sparse()}, "its tensor w is sparse"),
        ({"w": quantised}, "its tensor w is quantised"),
        ({"w": torch.empty(3, device="meta")}, "its tensor w is without content"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "its tensor w is complex"),
        ({"w": 3}, "is not a state dict: it holds more than named tensors"),
        ([weight], "is not a state dict"),
        (weight, "is not a state dict"),
    ):
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(UserError, match=message):
            torch_weights.load(tmp_path / "file.pth")
    torch.jit.save(scripted, tmp_path / "script.pt")
    with pytest.raises(UserError, match="is not a checkpoint of plain tensors"):
        torch_weights.load(tmp_path / "script.pt")


@pytest.mark.parametrize(
    "labels",
    [[2**40] * 2, ["a", "b"], [[1], [2]], 5, None, [1.5, 2.5], [10, 1], [-1, 0], {}, [None, 1]],
)
def test_cifar_pickles_of_odd_types(labels):
    images = np.zeros((2, 3072), np.uint8)
    raw = pickle.dumps({"labels": labels, "data": images})
    with pytest.raises(UserError, match="x is truncated or corrupt"):
        cifar._parse_python(raw, "x", False)


@pytest.mark.parametrize("content", [[], 5, {"label_names": 5}, {"label_names": [1] * 10}, {}])
def test_cifar_class_names_of_odd_types(content):
    with pytest.raises(UserError, match="x is truncated or corrupt"):
        cifar._class_names(pickle.dumps(content), "x", False)


def test_a_program_in_the_place_of_an_image_is_never_run(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, whatever the file's name."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: 1 / 0)
    (tmp_path / "x.jpg").write_bytes(EPS)
    with pytest.raises(ZeroDivisionError), Image.open(tmp_path / "x.jpg") as image:
        image.load()
    assert faults.fault(tmp_path / "x.jpg") == "not an image that Pillow can read"
    with pytest.raises(faults.FAULTS):
        decode.decode(tmp_path / "x.jpg", 8)


def test_pipes_are_left_out(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("val", "a")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / split / name / "1.png")
    os.mkfifo(tmp_path / "train" / "a" / "2.png")
    listing = folder.find(tmp_path)
    assert len(listing.train.labels) == 2
    assert listing.notes == ("left out 1 file other than images, by suffix: 1 .png",)
    with pytest.raises(UserError, match=r"2.png is neither a file nor a folder"):
        images_of([str(tmp_path / "train" / "a" / "2.png")])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "--checkpoint=²"], "no checkpoint '²', there are: last, best, 3"),
        (["evaluate", "--checkpoint=-3"], "no checkpoint '-3', there are: last, best, 3"),
        (["evaluate", "--checkpoint="], "no checkpoint '', there are: last, best, 3"),
    ],
)
def test_checkpoints_that_cannot_be(exported, arguments, message):
    command, *flags = arguments
    workdir = f"--workdir={exported}/run"
    text = (exported / "run" / "config.json").read_text()
    assert '"name": "arrays"' in text
    with pytest.raises(UserError) as error:
        orc_jax.evaluate(exported / "run", flags[0].partition("=")[2], data=tiny_data())
    assert str(error.value) == message
    assert run_here(command, workdir, *flags).returncode == 1


def test_a_report_needs_the_name_of_a_file(exported):
    result = run_here("report", str(exported / "run"), "--out=")
    expected = "error: the report's file is '', allowed: the path of a file\n"
    assert (result.returncode, result.stderr) == (1, expected)


def test_the_exports_of_this_file_are_good(exported):
    images = tiny_data()[2]
    found = [orc_jax.load(exported / part).predict(images) for part in ("export", "run/networks/0")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert jax.tree.structure(found)
