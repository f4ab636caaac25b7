from functools import partial

import jax
import numpy as np
import pytest
from conftest import golden, golden_tensors

from orc_jax import models, torch_weights
from orc_jax.errors import UserError

pytestmark = pytest.mark.optimised

HEADS = "dcm/mobilenet_heads"
GOLDEN = golden("models_cifar") | golden("models_imagenet") | golden("models_papers")
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


def variables_of(network, size=32, channels=3):
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), np.zeros((1, size, size, channels)), train=False)
    )


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def golden_images(case, rows):
    size = case["image_size"]
    images = np.random.default_rng(0).standard_normal((rows, 3, size, size)).astype(np.float32)
    return images.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != HEADS])
def test_golden(name):
    case, name = GOLDEN[name], OURS.get(name, name)
    network = models.create(name, np.shape(case["eval_logits"])[1])
    template = variables_of(network, case["image_size"])
    assert count(template) == case["num_params"]

    variables = torch_weights.convert(golden_tensors(case["tensors"]), name, template)
    images = golden_images(case, len(case["eval_logits"]))
    run = jax.jit(network.apply, static_argnames=("train", "mutable"))
    np.testing.assert_allclose(
        run(variables, images, train=False), case["eval_logits"], rtol=1e-4, atol=1e-4
    )
    logits, _ = run(variables, images, train=True, mutable="batch_stats")
    np.testing.assert_allclose(logits, case["train_logits"], rtol=1e-4, atol=1e-4)


def test_golden_auxiliary_heads_of_mobilenet():
    """Logits of head 1, head 2 and the network's own."""
    case = GOLDEN[HEADS]
    network = models.create("mobilenet", 100)
    images = golden_images(case, np.shape(case["eval_logits_per_head"])[1])

    template = jax.eval_shape(
        lambda: network.init(jax.random.key(0), images, train=False, method="with_auxiliary")
    )
    assert count(template) == case["num_params"]
    variables = torch_weights.convert(golden_tensors(case["tensors"]), "mobilenet", template)

    @partial(jax.jit, static_argnames=("train", "mutable"))
    def heads(variables, **kwargs):
        out = network.apply(variables, images, method="with_auxiliary", **kwargs)
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
    params = jax.eval_shape(
        lambda: network.init(jax.random.key(0), images, train=False, method="with_auxiliary")
    )["params"]
    assert {k: len(v) for k, v in params["auxiliary_0"].items() if k != "head"} == {
        "stages_0": 4,
        "stages_1": 2,
    }
    assert params["auxiliary_0"]["head"]["fc"]["kernel"].shape == (640, 100)
    assert {k: len(v) for k, v in params["auxiliary_1"].items() if k != "head"} == {"stages_0": 4}
    assert params["auxiliary_1"]["head"]["fc"]["kernel"].shape == (1280, 100)
    plain = variables_of(network)["params"]
    assert plain.keys() == params.keys() - {"auxiliary_0", "auxiliary_1"}


@pytest.mark.parametrize("name", models.NETWORKS)
def test_trunk_and_branch_are_the_network(name):
    """Run up to the last stage and on from it, on the variables of each part alone."""
    network = models.create(name, 7)
    template = variables_of(network, 8)
    keys = network.branch_keys()

    def part(variables, wanted):
        return {
            c: {k: v for k, v in tree.items() if (k in keys) == wanted}
            for c, tree in variables.items()
        }

    def run(variables, images):
        x = network.apply(part(variables, False), images, train=False, method="trunk")
        return network.apply(part(variables, True), x, train=False, method="branch").logits

    images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
    whole = partial(network.apply, train=False)
    assert jax.eval_shape(run, template, images) == jax.eval_shape(whole, template, images)
    if name in ("resnet8", "wrn_16_1"):
        variables = network.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False)
        images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
        np.testing.assert_array_equal(run(variables, images), whole(variables, images))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name):
    assert count(variables_of(models.create(name, 100))) == PARAMETERS[name]


@pytest.mark.parametrize("name", models.NETWORKS)
@pytest.mark.parametrize("size, channels", [(8, 1), (64, 3)])
def test_any_size_and_channel_count(name, size, channels):
    network = models.create(name, 7)
    images = jax.ShapeDtypeStruct((2, size, size, channels), np.float32)
    logits = jax.eval_shape(
        lambda v, x: network.apply(v, x, train=False), variables_of(network, size, channels), images
    )
    assert logits.shape == (2, 7)


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
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * before.var((0, 1, 2)), rtol=1e-4)


def test_gradients_of_one_network_and_of_a_stack_are_equal():
    network = models.create("tiny", 10)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    stack = jax.vmap(lambda key: network.init(key, images, train=False))(keys)

    def loss(variables):
        return (network.apply(variables, images, train=False) ** 2).sum()

    together = jax.grad(lambda v: jax.vmap(loss)(v).sum())(stack)
    one_by_one = [jax.grad(loss)(jax.tree.map(lambda x, i=i: x[i], stack)) for i in range(2)]
    inside = jax.vmap(jax.grad(loss))(stack)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    for got in (together, inside):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected
        )


def test_unknown_network():
    with pytest.raises(UserError, match="unknown network 'resnet21': did you mean 'resnet20'"):
        models.create("resnet21", 10)
