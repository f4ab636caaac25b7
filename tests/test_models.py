"""The networks against golden logits and parameter counts, and their parts and names."""

import json
import re
from functools import cache, partial

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, golden, golden_images, golden_tensors, run_command

from orc_jax import models
from orc_jax.errors import UserError
from orc_jax.models import densenet, mobilenet, mobilenet_v2, resnet, shufflenet, vgg, wide_resnet
from orc_jax.models.costs import cost, latency
from orc_jax.models.network import stage
from orc_jax.models.norm import BatchNorm
from orc_jax.trained import torch_weights

HEADS = "dcm/mobilenet_heads"
GOLDEN = golden("models_cifar") | golden("models_imagenet") | golden("models_papers")
# Made as the others were, from torchvision and from SwitOKD's MobileNet.
GOLDEN |= json.loads((ROOT / "tests" / "golden" / "models_others.json").read_text())
OURS = {  # of the golden files' names, those that are not
    "okddip/resnet32": "resnet32",
    "okddip/resnet110": "okddip_resnet110",
    "okddip/wide_resnet20_8": "wide_resnet20_8",
    "okddip/vgg16": "okddip_vgg16",
    "okddip/densenetd40k12": "densenet_40_12",
}
PARAMETERS = {  # published, 100 classes
    "wrn_28_10": 36_536_884,
    "wrn_40_1": 569_780,
    "resnet44": 667_188,
    "mobilenet": 3_309_476,
}


# Of networks that differ in depth and width alone, one.
KINDS = (
    *("resnet8", "ResNet10", "ResNet50", "wrn_16_1", "vgg8", "okddip_vgg16", "wide_resnet20_8"),
    *("densenet_40_12", "ShuffleV1", "ShuffleV2", "MobileNetV2", "mobilenet", "switokd_mobilenet"),
    *("resnet10", "resnet50", "MobileNetV1", "mobilenet_v2"),
    *("switokd_wrn_16_1", "switokd_resnet20", "switokd_resnet34"),
)


def variables_of(network, size=32, channels=3):
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), np.zeros((1, size, size, channels)), train=False)
    )


@cache
def of_seven_classes(name):
    """Shapes of a network's variables, made once."""
    return variables_of(models.create(name, 7))


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# Operations that come again and again within and among these: to compile each of them once takes
# less time than every network as a whole.
REPEATING = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet56", "resnet110", "wrn", "vgg")
REPEATING = (*REPEATING, "okddip_resnet110", "ResNet18", "wide_resnet", "okddip_vgg16", "switokd_")


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != HEADS])
def test_golden(name):
    case, name = GOLDEN[name], OURS.get(name, name)
    network = models.create(name, np.shape(case["eval_logits"])[1])
    template = variables_of(network, case["image_size"])
    assert count(template) == case["num_params"]

    variables = torch_weights.convert(golden_tensors(case["tensors"]), name, template)
    images = golden_images(case, len(case["eval_logits"]))
    run = network.apply
    if not name.startswith(REPEATING):
        run = jax.jit(run, static_argnames=("train", "mutable"))
    np.testing.assert_allclose(
        run(variables, images, train=False), case["eval_logits"], rtol=1e-4, atol=1e-4
    )
    logits, _ = run(variables, images, train=True, mutable="batch_stats")
    np.testing.assert_allclose(logits, case["train_logits"], rtol=1e-4, atol=1e-4)


def init_with_heads(network, key, images):
    """Outputs and variables, with auxiliary heads."""
    return network.init_with_output(key, images, train=False, auxiliary=True, method="outputs")


def test_golden_auxiliary_heads_of_mobilenet():
    """Logits of head 1, head 2 and the network's own."""
    case = GOLDEN[HEADS]
    network = models.create("mobilenet", 100)
    images = golden_images(case, np.shape(case["eval_logits_per_head"])[1])

    template = jax.eval_shape(lambda: init_with_heads(network, jax.random.key(0), images)[1])
    assert count(template) == case["num_params"]
    variables = torch_weights.convert(golden_tensors(case["tensors"]), "mobilenet", template)

    @partial(jax.jit, static_argnames=("train", "mutable"))
    def heads(variables, **kwargs):
        out = network.apply(variables, images, auxiliary=True, method="outputs", **kwargs)
        out = out[0] if "mutable" in kwargs else out
        return jax.numpy.concatenate([out.auxiliary, out.logits[:, None]], axis=1).swapaxes(0, 1)

    np.testing.assert_allclose(
        heads(variables, train=False), case["eval_logits_per_head"], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        heads(variables, train=True, mutable="batch_stats"),
        case["train_logits_per_head"],
        rtol=1e-4,
        atol=1e-4,
    )


def test_auxiliary_heads_of_a_wide_residual_network():
    """Head 1: a stage of n blocks, then n//2; head 2: n blocks of double width."""
    network = models.create("wrn_28_10", 100)
    images = np.zeros((1, 32, 32, 3), np.float32)
    params = jax.eval_shape(lambda: init_with_heads(network, jax.random.key(0), images)[1])[
        "params"
    ]
    assert {k: len(v) for k, v in params["auxiliary_0"].items() if k != "head"} == {
        "stages_0": 4,
        "stages_1": 2,
    }
    assert params["auxiliary_0"]["head"]["fc"]["kernel"].shape == (640, 100)
    assert {k: len(v) for k, v in params["auxiliary_1"].items() if k != "head"} == {"stages_0": 4}
    assert params["auxiliary_1"]["head"]["fc"]["kernel"].shape == (1280, 100)
    plain = variables_of(network)["params"]
    assert plain.keys() == params.keys() - {"auxiliary_0", "auxiliary_1"}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_takes_small_and_large_images_and_has_parts(name):
    """8×16 grey to 224×224 in colour; a trunk and a last stage; with two heads more."""
    network = models.create(name, 7)
    size = models.NETWORKS[name].smallest
    assert size == (32 if name == "okddip_vgg16" else 8)
    images = jax.ShapeDtypeStruct((2, size, 2 * size, 1), np.float32)
    template = variables_of(network, size, 1)
    assert set(template["params"]) - network.trunk_keys() == {
        f"stages_{len(network.stages) - 1}",
        "head",
    }

    outputs = jax.eval_shape(
        lambda v, x: network.apply(v, x, train=False, method="outputs"), template, images
    )
    assert outputs.logits.shape == (2, 7)
    last = jax.eval_shape(lambda v, x: network.apply(v, x, method="last_stage"), template, images)
    assert 0 not in last.shape and last.ndim == 4
    assert outputs.trunk.shape[0] == 2 and outputs.auxiliary is None

    images = np.zeros((2, 224, 224, 3), np.float32)
    outputs, _ = jax.eval_shape(lambda: init_with_heads(network, jax.random.key(0), images))
    assert outputs.logits.shape == (2, 7) and outputs.auxiliary.shape == (2, 2, 7)
    assert outputs.features.shape[0] == 2


@pytest.mark.parametrize("name", KINDS)
def test_weights_go_to_pytorch_and_back(name):
    """Every variable has a PyTorch name of its own; those for training only are passed over."""
    variables = of_seven_classes(name)
    names = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        key = torch_weights.torch_name(name, tuple(part.key for part in path[1:]))
        shape = [leaf.shape[i] for i in (3, 2, 0, 1)] if leaf.ndim == 4 else leaf.shape[::-1]
        assert names.setdefault(key, shape) is shape, key
        assert not re.search("stages|block_|stem|head", key), key
    tensors = {key: np.zeros(shape, np.float32) for key, shape in names.items()}
    tensors["bn1.num_batches_tracked"] = np.zeros(())
    back = torch_weights.convert(tensors, name, variables)
    assert jax.tree.map(np.shape, back) == jax.tree.map(lambda x: x.shape, variables)


def test_dcms_file_loads_without_its_heads():
    tensors = golden_tensors(GOLDEN[HEADS]["tensors"])
    variables = torch_weights.convert(
        tensors, "mobilenet", variables_of(models.create("mobilenet", 100))
    )
    assert not [key for key in variables["params"] if key.startswith("auxiliary")]


def test_features_of_okddips_vgg_are_the_pooled_last_stage():
    network = models.create("okddip_vgg16", 7)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, np.float32), variables_of(network))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    outputs, seen = network.apply(
        variables, images, train=False, method="outputs", capture_intermediates=True, mutable=True
    )
    last = seen["intermediates"]["stages_3"]["__call__"][0]
    np.testing.assert_allclose(outputs.features, last.mean(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_outputs_are_those_of_the_parts(name):
    """Run part by part, by modules of their own on their own variables."""
    network = models.create(name, 7)
    variables = network.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    parts = {"stem": network.stem} | {f"stages_{i}": s for i, s in enumerate(network.stages)}
    x, seen = images, {}
    for key, part in parts.items():
        own = {name: tree[key] for name, tree in variables.items() if key in tree}
        x = seen[key] = part.apply(own, x, False)
    head = {name: tree["head"] for name, tree in variables.items() if "head" in tree}
    logits, features = network.head.apply(head, x, False)
    outputs = network.apply(variables, images, train=False, method="outputs")
    np.testing.assert_array_equal(outputs.logits, logits)
    np.testing.assert_array_equal(outputs.features, features)
    trunk = seen[f"stages_{len(network.stages) - 2}"].mean(axis=(1, 2))
    np.testing.assert_allclose(outputs.trunk, trunk, rtol=1e-6)
    np.testing.assert_array_equal(network.apply(variables, images, method="last_stage"), x)


BLOCKS = {  # of every family, and the channels that go into it
    resnet.ResidualBlock: (6, 8),
    resnet.Bottleneck: (6, 8),
    resnet.ShortcutWithoutParameters: (4, 8),
    wide_resnet.PreActivationBlock: (6, 8),
    wide_resnet.PreActivationBlockSwitokd: (6, 8),
    vgg.ConvBlock: (6, 8),
    densenet.DenseLayer: (6, 4),
    shufflenet.ShuffleBlockV1: (24, 48),
    shufflenet.ShuffleBlockV2: (6, 8),
    mobilenet.SeparableBlock: (6, 8),
    mobilenet_v2.InvertedResidual: (6, 8),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_stack_of_every_family_is_its_members(block):
    """Outputs, gradients and statistics of two blocks, the first of which strides, under vmap."""
    channels, features = BLOCKS[block]
    part = stage(block, features, 2, 2, BatchNorm)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 4, 4, 4, channels)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    stack = jax.vmap(lambda key: part.init(key, images[0], train=False))(keys)

    def run(variables, images):
        def loss(params, images):
            out, updated = part.apply(
                variables | {"params": params}, images, train=True, mutable="batch_stats"
            )
            return (out.astype("float32") ** 2).sum(), (out, updated)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images)

    # Images of bfloat16 make it compute in bfloat16, with all else in float32.
    half = jax.eval_shape(run, jax.tree.map(lambda x: x[0], stack), images[0].astype("bfloat16"))
    (of_params, of_images), (out, updated) = half
    assert out.dtype == of_images.dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves((of_params, updated))} == {np.dtype("float32")}

    together = jax.jit(jax.vmap(run))(stack, images)
    run = jax.jit(run)
    alone = [run(jax.tree.map(lambda x, i=i: x[i], stack), images[i]) for i in range(2)]
    jax.tree.map(
        lambda a, *b: np.testing.assert_allclose(a, np.stack(b), rtol=1e-4, atol=1e-4),
        together,
        *alone,
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name):
    assert count(variables_of(models.create(name, 100))) == PARAMETERS[name]


def test_batch_norm_keeps_nine_tenths_of_the_old_statistics():
    network = models.create("resnet8", 10)
    images = np.random.default_rng(0).normal(3, 2, (8, 8, 8, 1)).astype(np.float32)
    variables = network.init(jax.random.key(0), images, train=False)
    _, updated = network.apply(variables, images, train=True, mutable="batch_stats")
    stem = variables["params"]["stem"]["conv1"]["kernel"]
    before = jax.lax.conv_general_dilated(
        images, stem, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stats = updated["batch_stats"]["stem"]["bn1"]
    np.testing.assert_allclose(stats["mean"], 0.1 * before.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    unbiased = np.var(before, axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)


def test_the_last_norm_of_switokds_wide_network_follows_the_batch_by_nine_tenths():
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)

    def mean_after(norm):
        network = wide_resnet.wide_resnet_switokd(10, 1, 10, norm)
        variables = network.init(jax.random.key(0), images, train=False)
        _, updated = network.apply(variables, images, train=True, mutable="batch_stats")
        return updated["batch_stats"]["head"]["bn1"]["mean"]

    usual = mean_after(lambda **kwargs: BatchNorm(**kwargs | {"momentum": 0.9}))
    np.testing.assert_allclose(mean_after(BatchNorm), 9 * usual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "typed, name",
    [
        ("ResNet-56", "resnet56"),
        ("wrn-40-2", "wrn_40_2"),
        ("WRN-40-2", "wrn_40_2"),
        ("WideResNet-28-10", "wrn_28_10"),
        ("wide_resnet_20_8", "wide_resnet20_8"),
        ("VGG-16", "vgg16"),
        ("DenseNet-40-12", "densenet_40_12"),
        ("densenetd100k12", "densenet_100_12"),
        ("ShuffleNetV2", "ShuffleV2"),
        ("resnet32x4", "resnet32x4"),
        ("ResNet18", "ResNet18"),
        ("resnet18", "resnet18"),
    ],
)
def test_spellings_that_people_type(typed, name):
    assert models.canonical(typed) == name


def test_a_spelling_of_two_networks():
    with pytest.raises(
        UserError, match="'ResNet-18' may be ResNet18 or resnet18: write one of these"
    ):
        models.canonical("ResNet-18")


@pytest.mark.parametrize(
    "name, nearest", [("resnet21", "resnet20"), ("WRN-40-3", "wrn_40_"), ("wrn-1-62", "wrn_")]
)
def test_a_misspelt_network_in_any_spelling_gets_the_nearest_name(name, nearest):
    with pytest.raises(UserError, match=f"unknown network '{name}': did you mean '{nearest}"):
        models.create(name, 10)


def test_the_command_prints_the_readmes_table():
    """Every network with its parameters and multiply-adds."""
    output = run_command("-m", "orc_jax.models", env={"COLUMNS": "120"}).stdout
    printed = re.findall(r"│ (\S+) +│ +(\d+)×\d+ │ +\d+ │ +(\S+) M │ +(\S+) M │", output)
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (\d+) \| (\S+) M \| (\S+) M \|", readme, re.MULTILINE)
    assert rows == printed
    assert [name for name, *_ in printed] == [n for n in models.NETWORKS if n not in TINY]


def test_latency():
    assert 0 < latency("tiny", repetitions=3) < 1000


def test_multiply_adds_by_hand():
    """resnet8 on 32×32: stem, then per stage two convolutions and the projections."""
    first = 32 * 32 * 9 * (3 * 16 + 2 * 16 * 16)
    second = 16 * 16 * (9 * (16 * 32 + 32 * 32) + 16 * 32)
    third = 8 * 8 * (9 * (32 * 64 + 64 * 64) + 32 * 64)
    assert cost("resnet8")[1] == first + second + third + 64 * 100
