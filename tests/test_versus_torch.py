"""The PyTorch program of the benchmark against orc_jax."""

import numpy as np
import pytest
import torch

from benchmarks import torch_group, versus_torch
from configs import digits
from orc_jax.data import batches


@pytest.mark.parametrize("preset", ["orc:resnet8,resnet8,resnet8", "dcm:wrn_16_1,wrn_16_1"])
def test_equal_losses_from_equal_weights_and_not_from_others(preset, monkeypatch):
    config = digits.get_config(preset)
    config.batch_size = 16
    config.mesh.data = 1
    data, what = versus_torch.arrays(config)
    assert what == "digits"
    ours = versus_torch.Ours(config, data)
    group = torch_group.Group(config, 10, 1, "cpu", torch.channels_last, compiled=False)
    versus_torch.same_losses(ours, group)

    weights = versus_torch.weights(ours.setup, ours.state)
    assert all(
        tensors.keys() == {name for name in network.state_dict() if "num_batches" not in name}
        for tensors, network in zip(weights, group.networks, strict=True)
    )
    weights[1]["fc.bias"] = weights[1]["fc.bias"] + [1, *[0] * 9]
    monkeypatch.setattr(versus_torch, "weights", lambda setup, state: weights)
    with pytest.raises(ValueError, match="nothing is timed"):
        versus_torch.same_losses(ours, group)


def test_images_without_a_crop_are_ours():
    config = digits.get_config()
    (images, labels, *_), _ = versus_torch.arrays(config)
    config.data.pad = 0
    mean, std = batches.scale(images)
    theirs = torch_group.Images(images, labels, mean, std, config.data)
    batch, found = next(iter(torch_group.loader(theirs, 8, 0, "cpu")))
    assert batch.shape == (8, 1, 8, 8) and found.shape == (8,)
    image, label = theirs[3]
    assert label == labels[3]
    ours = batches.normalise(batches.OnDevice(images, labels, mean, std), images[3])
    np.testing.assert_allclose(image, ours.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
