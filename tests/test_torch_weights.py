import jax
import numpy as np
import pytest
import torch
from conftest import golden, golden_tensors
from safetensors.numpy import save_file

from orc_jax import models, torch_weights
from orc_jax.errors import UserError

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
    for file in sorted(tmp_path.iterdir()):
        loaded = torch_weights.load(file)
        assert loaded.keys() == tensors.keys()
        for name in tensors:
            np.testing.assert_array_equal(loaded[name], tensors[name])


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_files_that_are_no_weights(tmp_path):
    torch.save(Malicious(), tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "weights.h5").write_text("hello")
    for file in [*tmp_path.iterdir(), tmp_path / "absent.pth"]:
        with pytest.raises(UserError, match=file.name):
            torch_weights.load(file)


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
