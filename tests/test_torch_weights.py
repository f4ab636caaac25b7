"""Import of PyTorch weights: kinds of files, faulty files, and the command."""

import argparse

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import (
    assert_trees_equal,
    golden,
    golden_images,
    golden_tensors,
    run_command,
    run_here,
    tiny_config,
)
from safetensors.numpy import save_file

import orc_jax
from orc_jax import models
from orc_jax.errors import UserError
from orc_jax.prepare import prepare
from orc_jax.trained import saved, torch_weights
from orc_jax.trained.import_torch import import_torch

SHAPES = golden("models_cifar")["resnet8"]["tensors"]


@pytest.fixture
def template():
    network = models.create("resnet8", 100)
    images = np.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))


def test_every_kind_of_file_gives_the_same_tensors(tmp_path):
    tensors = golden_tensors(SHAPES)
    as_torch = {name: torch.from_numpy(value) for name, value in tensors.items()}
    wrapped = {"module." + name: value for name, value in as_torch.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(as_torch, tmp_path / "a.pth")
    torch.save({"epoch": 3, "model": wrapped}, tmp_path / "b.pt")
    torch.save({"state_dict": wrapped, "best": 1.0}, tmp_path / "c.pth")
    parameters = {name: torch.nn.Parameter(value) for name, value in as_torch.items()}
    torch.save({"state_dict": parameters, "model": "resnet8"}, tmp_path / "d.pth")
    save_file(
        {"module." + name: value for name, value in tensors.items()}, tmp_path / "e.safetensors"
    )
    options = argparse.Namespace(model="resnet8", lr=0.1)  # as the benchmark's last checkpoint
    best = np.float64(70.3)
    torch.save({"opt": options, "model": as_torch, "best": best}, tmp_path / "f.pth.tar")
    halves = {name: value.half() for name, value in as_torch.items()}
    torch.save(halves, tmp_path / "half.pth")
    half = torch_weights.load(tmp_path / "half.pth")
    assert all(value.dtype == np.float32 for value in half.values())
    (tmp_path / "half.pth").unlink()
    doubles = {name: value.double() for name, value in as_torch.items()}
    torch.save({"net": {"_orig_mod." + n: v for n, v in doubles.items()}}, tmp_path / "best")
    averaged = {"n_averaged": torch.tensor(3), **{"module." + n: v for n, v in as_torch.items()}}
    torch.save({"model_ema": averaged}, tmp_path / "g")
    torch.save(
        {"model_state_dict": {"model." + n: v for n, v in as_torch.items()}},
        tmp_path / "h.bin",
        _use_new_zipfile_serialization=False,
    )
    (tmp_path / "i").write_bytes((tmp_path / "a.safetensors").read_bytes())
    for file in sorted(tmp_path.iterdir()):
        loaded = torch_weights.load(file)
        assert loaded.keys() == tensors.keys()
        for name in tensors:
            np.testing.assert_array_equal(loaded[name], tensors[name])


def test_of_two_sets_of_weights_the_trained_one_is_taken_and_that_is_said(tmp_path, capsys):
    tensors = {"fc.weight": torch.zeros(2, 2)}
    averaged = {"fc.weight": torch.ones(2, 2)}
    torch.save({"state_dict": tensors, "state_dict_ema": averaged}, tmp_path / "both.pth")
    assert not torch_weights.load(tmp_path / "both.pth")["fc.weight"].any()
    said = " ".join(capsys.readouterr().out.split())
    assert "both.pth: took 'state_dict', not 'state_dict_ema'" in said


def test_bfloat16_becomes_float32(tmp_path):
    value = torch.tensor([[1.0, 0.3]]).bfloat16()
    torch.save({"fc.weight": value}, tmp_path / "a.pth")
    safetensors.torch.save_file({"fc.weight": value}, tmp_path / "a.safetensors")
    for file in tmp_path.iterdir():
        found = torch_weights.load(file)["fc.weight"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, value.float().numpy())


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_files_that_are_no_weights(tmp_path):
    torch.save(Malicious(), tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "weights.h5").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    save_file({}, tmp_path / "empty.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0{")
    for file in [*tmp_path.iterdir(), tmp_path / "absent.pth"]:
        with pytest.raises(UserError, match=file.name):
            torch_weights.load(file)
    with pytest.raises(UserError, match=r"plain tensors: it asks for exec$"):
        torch_weights.load(tmp_path / "code.pth")


def test_missing_left_over_and_misshapen_tensors_are_named(template):
    tensors = golden_tensors(SHAPES)
    tensors["bn1.num_batches_tracked"] = np.array(3)
    torch_weights.convert(tensors, "resnet8", template)
    tensors["extra.weight"] = tensors.pop("layer1.0.conv1.weight")
    tensors["fc.bias"] = np.zeros(10)
    with pytest.raises(UserError) as error:
        torch_weights.convert(tensors, "resnet8", template)
    assert "layer1.0.conv1.weight is missing" in str(error.value)
    assert "extra.weight is left over" in str(error.value)
    assert "fc.bias gives (10,), the network has (100,)" in str(error.value)


COMMAND = ("-m", "orc_jax.import_torch")
WHAT = ("--model=ResNet-8", "--num_classes=100")


def test_the_command_saves_a_network_that_gives_the_same_logits(tmp_path):
    """As the README has it: then it is a teacher of kd."""
    case = golden("models_cifar")["resnet8"]
    file, out = tmp_path / "resnet8.safetensors", tmp_path / "teachers" / "resnet8"
    save_file(golden_tensors(SHAPES), file)
    result = run_command(*COMMAND, str(file), *WHAT, f"--out={out}")
    assert result.stdout.endswith("resnet8, 83,892 parameters\n")

    network, variables, description = orc_jax.load_network(out)
    assert description == {"network": "resnet8", "num_classes": 100, "source": file.name}
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(
        variables, golden_images(case, len(case["eval_logits"]))
    )
    np.testing.assert_allclose(logits, case["eval_logits"], rtol=1e-4, atol=1e-4)

    config = tiny_config(("resnet8", "pixels"), "kd")
    config.peers[0].init_from = str(out)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    data = (images, np.arange(200) % 100, images[:100], np.arange(100))
    setup = prepare(config, data)
    found, own_images = saved.pretrained(setup.group, {0: config.peers[0].init_from}, setup.images)
    assert_trees_equal(found[0], variables)
    assert own_images == {}  # it was imported without its mean and deviation

    again = run_command(*COMMAND, str(file), *WHAT, f"--out={out}", check=False)
    assert again.returncode == 1 and again.stderr == f"error: {out} exists already\n"


def test_what_cannot_be_imported(tmp_path):
    file = tmp_path / "good.safetensors"
    save_file(golden_tensors(SHAPES), file)
    for args, message in (
        (("resnet8", 0), "num_classes is 0"),
        (("resnet8", 10), r"the network has \(64, 10\)"),
        (("resnet14", 100), r"layer1.1.bn1.running_mean is missing; .* and 25 more"),
        (("resnet9", 100), "did you mean 'resnet"),
        (("resnet8", 100, 3, (0.5,), ()), "one number each or 3"),
        (("resnet8", 100, 3, (0.5,), (0.0,)), "std above 0"),
        (("resnet8", 100, 3, (), (), 4), "size is 4, allowed for resnet8: 8 or more"),
    ):
        with pytest.raises(UserError, match=message):
            import_torch(file, *args[:2], tmp_path / "out", *args[2:])
    assert not (tmp_path / "out").exists()


def test_the_commands_mistakes_get_one_line(tmp_path):
    torch.save(Malicious(), tmp_path / "code.pth")
    for args, message in (
        ((), "FILE is required"),
        ((str(tmp_path / "code.pth"),), "code.pth is not a checkpoint of plain tensors"),
        (("a.pth", "b.pth"), "unexpected argument 'b.pth'"),
    ):
        result = run_here("import-torch", *args, *WHAT, f"--out={tmp_path / 'out'}")
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert message in result.stderr
        assert not (tmp_path / "out").exists()
