"""The config: its checks, copies, JSON form, meshes and learning-rate schedules."""

import json
import math

import pytest
from conftest import tiny_config, tiny_data

from orc_jax import checks, methods, optimizers, peers
from orc_jax import config as configs
from orc_jax.errors import UserError
from orc_jax.prepare import prepare


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("epochs", 0, "epochs is 0, allowed: 1 or more"),
        ("batch_size", 15, "batch_size is 15, allowed: multiples of 2"),
        ("seed", -1, "seed is -1, allowed: 0 to 2147483647"),
        ("seed", 2**31, "seed is 2147483648, allowed: at most 2147483647"),
        ("optimizer.decay_epochs", (3, -1), "decay_epochs has -1"),
        ("peers", (configs.peer("pixels"),), "a teacher and a student, config.peers has 1"),
        ("data.name", "cifar", "unknown value of data.name 'cifar': did you mean 'cifar10'"),
        ("data.pad_mode", "mirror", "allowed: zero, reflect"),
        ("data.pad", -1, "data.pad is -1"),
        ("data.train_images", 10, "train_images is 10, allowed: 0 for all, or batch_size, 16, or"),
        ("data.train_images", -1, "data.train_images is -1, allowed: 0 for all"),
        ("data.size", 32, "data.size is 32, allowed: 0, because digits has images of one size"),
        ("data.cutmix", -1, "data.cutmix is -1.0, allowed: 0 or more"),
        ("data.label_smoothing", 1.1, "data.label_smoothing is 1.1, allowed: 0 to 1"),
        ("mesh.peer", 3, "needs 3 devices, here are 2"),
        ("mesh.data", 4, "needs 4 devices, here are 2"),
        ("mesh.peer", 0, "mesh.peer is 0, allowed: -1, or 1 or more"),
        ("method.name", "ocr", "unknown method 'ocr': did you mean 'orc'"),
        ("method.num_temporary", 3, "method.num_temporary is 3"),
        ("optimizer.name", "sdg", "did you mean 'sgd'"),
        ("optimizer.schedule", "steps", "did you mean 'step'"),
        ("optimizer.learning_rate", -0.1, "learning_rate is -0.1"),
        ("optimizer.learning_rate", math.inf, "optimizer.learning_rate is inf, allowed: finite"),
        ("optimizer.warmup_epochs", math.nan, "optimizer.warmup_epochs is nan, allowed: finite"),
        ("optimizer.decay_epochs", (1e999,), r"decay_epochs is \[inf\], allowed: finite numbers"),
        ("optimizer.momentum", 2.0, "optimizer.momentum is 2.0, allowed: from 0 to below 1"),
        ("method.temperature", math.inf, "method.temperature is inf, allowed: finite numbers"),
        ("eval_batch_size", 10**20, "eval_batch_size is 1000+, allowed: at most 2147483647"),
        ("peers", (), "allowed: a tuple of networks"),
        ("precision", "float16", "value of precision 'float16': .* allowed: float32, bfloat16"),
    ],
)
def test_values_that_make_no_sense(key, value, message):
    config = tiny_config()
    checks.check(config, 2)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        checks.check(config, 2)


def test_unknown_network_and_keys():
    config = tiny_config(("resnet8", "resnet21"))
    config.method.pivot = None
    with pytest.raises(
        UserError, match=r"peers\[1\].model: .* 'resnet21': did you mean 'resnet20'"
    ):
        checks.check(config, 1)
    config = tiny_config()
    config.method.temprature = 3.0
    with pytest.raises(UserError, match="'temprature': did you mean 'temperature'"):
        checks.check(config, 1)
    config = tiny_config()
    config.peers[2].lr = 3.0
    with pytest.raises(UserError, match=r"config.peers\[2\] 'lr'"):
        checks.check(config, 1)
    config = tiny_config()
    del config.data.flip
    with pytest.raises(UserError, match=r"config\.data has no key 'flip'"):
        checks.check(config, 1)


def test_networks_in_spellings_that_people_type():
    config = tiny_config(("ResNet-56", "WRN-40-2", "vgg_16"), "dml")
    before = config.to_json()
    checks.check(config, 1)
    assert config.to_json() == before
    names = [peer.model for peer in configs.resolved(config).peers]
    assert names == ["resnet56", "wrn_40_2", "vgg16"] and config.to_json() == before
    config.peers[0].model = "ResNet-18"
    with pytest.raises(UserError, match="may be ResNet18 or resnet18"):
        checks.check(config, 1)


@pytest.mark.parametrize(
    "method, networks, devices, mesh",
    [
        ("dml", ("pixels",) * 4, 1, (1, 1)),
        ("dml", ("pixels",) * 4, 4, (1, 4)),
        ("dml", ("pixels",) * 4, 8, (2, 4)),
        ("dml", ("pixels",) * 3, 4, (4, 1)),
        ("dml", ("pixels", "pixels_wide"), 4, (4, 1)),
        ("dml", (*["pixels"] * 4, "pixels_wide", "pixels_wide"), 4, (2, 2)),
        ("orc", ("pixels_wide", *["pixels"] * 3), 3, (1, 3)),
        ("one", ("pixels",) * 4, 4, (4, 1)),
        ("dml", ("pixels",) * 5, 5, (1, 5)),  # 24 images do not divide by 5, and need not
        ("dml", ("pixels",) * 4, 16, (4, 4)),  # nor by 16
    ],
)
def test_the_mesh_that_exchanges_the_fewest_gradients(method, networks, devices, mesh):
    config = tiny_config(networks, method)
    config.batch_size = 24
    assert checks.check(config, devices) == mesh
    config.mesh.data = 1
    assert checks.check(config, devices) == (1, 1)


def test_preparing_leaves_the_config_as_it_was():
    config = tiny_config(("ResNet-8", "pixels"), "dml")
    before = config.to_json()
    setup = prepare(config, tiny_data())
    assert config.to_json() == before
    assert [peer.model for peer in setup.config.peers] == ["resnet8", "pixels"]


def test_images_too_small_for_a_network():
    config = tiny_config(("pixels", "OKDDip-VGG16"), "dml")
    with pytest.raises(UserError, match=r"peers\[1\].* needs images of 32×32 .* these are 8×8"):
        prepare(config, tiny_data())


def test_json_keeps_a_config():
    config = tiny_config()
    config.peers[1].optimizer.learning_rate = 0.3
    again = configs.from_json(configs.to_json(config))
    assert configs.differences(config, again) == []
    checks.check(again, 1)
    again.peers[1].model = "pixels_wide"
    again.method.pivot = None
    assert configs.differences(config, again) == [
        "method.pivot: 0 → None",
        "peers[1].model: 'pixels' → 'pixels_wide'",
    ]


def test_a_config_of_an_earlier_version_means_what_it_did():
    config = tiny_config()
    values = json.loads(configs.to_json(config))
    assert values.pop("schema") == 2
    del values["data"]["test_share"], values["method"]["pretrained"], values["remat"]
    values["data"]["val_share"] = 0.3
    for member in values["peers"]:
        del member["new_head"], member["optimizer"]["warmup_epochs"]
    earlier = configs.from_json(json.dumps(values))
    assert (earlier.data.test_share, earlier.data.val_share) == (0.3, 0.0)
    assert earlier.method.pretrained is False and earlier.peers[1].new_head is False
    checks.check(earlier, 1)
    assert configs.differences(earlier, config) == ["data.test_share: 0.3 → 0.1"]
    with pytest.raises(UserError, match=r"a later version .* \(schema 3\): install that one"):
        configs.from_json(json.dumps(values | {"schema": 3}))


def rates(epochs=10, steps_per_epoch=4, **settings):
    config = configs.default_config()
    config.optimizer.update(settings)
    schedule = optimizers.schedule(config.optimizer, epochs, steps_per_epoch)
    return [float(schedule(step)) for step in range(epochs * steps_per_epoch)]


def test_schedules():
    step = rates(schedule="step", learning_rate=1.0, decay_epochs=(5, 8), decay=0.1)
    assert step == pytest.approx([1.0] * 20 + [0.1] * 12 + [0.01] * 8)
    cosine = rates(schedule="cosine", learning_rate=1.0)
    assert cosine[0] == 1 and cosine[20] == pytest.approx(0.5) and cosine[-1] < 0.01
    assert rates(schedule="constant", learning_rate=0.3) == pytest.approx([0.3] * 40)
    warm = rates(
        schedule="step", learning_rate=1.0, decay_epochs=(5,), decay=0.1, warmup_epochs=2.0
    )
    assert warm == pytest.approx([i / 8 for i in range(8)] + [1.0] * 12 + [0.1] * 20)


def test_peers_with_their_own_optimizer_are_stacks_of_their_own():
    config = tiny_config(("pixels",) * 5)
    config.peers[2].optimizer.learning_rate = 0.3
    config.peers[4].optimizer.name = "adam"
    layout = peers.layout(config, methods.get("orc"))
    assert [stack.peers for stack in layout] == [(0,), (1, 3), (2,), (4,)]
    assert [stack.kind for stack in layout] == ["later", "train", "train", "train"]
    assert [stack.optimizer.learning_rate for stack in layout] == [0.05, 0.05, 0.3, 0.05]
    assert layout[3].optimizer.name == "adam"
