"""Grad-CAM: heat maps against a case computed by hand, for every family, and the command."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden, golden_tensors, run_command, run_here
from PIL import Image
from safetensors.numpy import save_file

import orc_jax
from configs import digits
from orc_jax import models
from orc_jax.data import digits as data
from orc_jax.errors import UserError
from orc_jax.insight import gradcam, inspect
from orc_jax.models.layers import Head
from orc_jax.models.network import Network
from orc_jax.trained.import_torch import import_torch

COMMAND = ("-m", "orc_jax.gradcam")
FAMILIES = (
    "resnet8",
    "ResNet50",
    "wrn_16_1",
    "vgg8",
    "okddip_vgg16",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "densenet_40_12",
    "mobilenet",
    "resnet10",
    "mobilenet_v2",
)


class AsItIs(nn.Module):
    """A stage that changes nothing, so that A is the image itself."""

    def __call__(self, x, train):
        return x


def test_a_case_computed_by_hand():
    """With z = W · (mean of A) + b, α_k is W_k / (h·w)."""
    network = Network(AsItIs(), [AsItIs()], Head(2))
    # Two channels of 1×2 positions; classes weigh them (2, −1) and (−3, 0).
    images = jnp.array([[[[4.0, 2.0], [1.0, 6.0]]]])
    weights = {"kernel": jnp.array([[2.0, -3.0], [-1.0, 0.0]]), "bias": jnp.array([5.0, 7.0])}
    variables = {"params": {"head": {"fc": weights}}}
    # Class 0: (2·4 − 1·2)/2 = 3 and (2·1 − 1·6)/2 = −2, which ReLU takes away.
    maps = gradcam.heat_maps(network, variables, images, jnp.array([0]))
    np.testing.assert_allclose(maps, [[[3.0, 0.0]]])
    # To 1×4 pixels, bilinear between the centres, and to a maximum of 1.
    np.testing.assert_allclose(gradcam.over_image(maps, 1, 4), [[[1.0, 0.75, 0.25, 0.0]]])

    # Class 1: −3·4/2 and −3·1/2: no evidence anywhere, and nothing divided by zero.
    maps = gradcam.heat_maps(network, variables, images, jnp.array([1]))
    np.testing.assert_allclose(gradcam.over_image(maps, 1, 4), np.zeros((1, 1, 4)))


def test_alpha_is_the_slope_of_the_logit_where_the_head_is_not_linear():
    """h·w·α_k is how fast the logit grows with channel k: α's sum over A by finite differences."""
    network = models.create("wrn_16_1", 3)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    classes = jnp.array([2, 0])

    @jax.jit
    def compare(key):
        variables = network.init(key, images, train=False)
        activations = network.apply(variables, images, method="last_stage")
        _, height, width, channels = activations.shape

        def logits(offset):
            return network.apply(variables, activations + offset, method=gradcam._head)

        rises = jax.vmap(lambda d: logits(d) - logits(-d))(1e-2 * jnp.eye(channels))
        alpha = rises[:, jnp.arange(2), classes].T / (2e-2 * height * width)
        expected = nn.relu(jnp.einsum("bk,bhwk->bhw", alpha, activations))
        return gradcam.heat_maps(network, variables, images, classes), expected

    maps, expected = compare(jax.random.key(1))
    assert maps.max() > 0
    np.testing.assert_allclose(maps, expected, atol=0.02 * float(maps.max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_maps(name):
    network, size = models.create(name, 7), 64 if models.NETWORKS[name].size > 32 else 32
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    classes = jax.ShapeDtypeStruct((2,), jnp.int32)

    def run(key, images, classes):
        variables = network.init(key, images, train=False)
        return gradcam.view(network, variables, images, classes)

    seen = jax.eval_shape(run, jax.random.key(0), images, classes)
    assert seen.heat.shape == (2, size, size)
    assert seen.probabilities.shape == (2, 7)


def test_the_class_asked_for_or_the_predicted_one():
    network = models.create("pixels", 4)
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    classes = jnp.array([1, gradcam.PREDICTED, 3])

    @jax.jit
    def run(key):
        variables = network.init(key, images, train=False)
        predicted = network.apply(variables, images, train=False).argmax(axis=1)
        return predicted, gradcam.view(network, variables, images, classes)

    predicted, seen = run(jax.random.key(1))
    np.testing.assert_array_equal(seen.shown, [1, predicted[1], 3])
    np.testing.assert_allclose(seen.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert seen.heat.min() >= 0 and seen.heat.max() <= 1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A teacher and a student after an epoch."""
    config = digits.get_config("switokd:resnet8,resnet8")
    config.epochs, config.batch_size = 1, 256
    workdir = tmp_path_factory.mktemp("gradcam") / "run"
    orc_jax.train(config, workdir)
    return workdir


def test_the_command_draws_the_peers_of_a_run(workdir, tmp_path):
    (tmp_path / "folder").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "folder" / "mine.png")
    images = f"--images=test:0,{tmp_path / 'folder'}"
    result = run_command(*COMMAND, f"--workdir={workdir}", images)
    out = workdir / "gradcam"
    assert result.stdout == f"4 figures in {out}\n"
    names = {path.name for path in out.iterdir()}
    assert names == {f"{n}{s}.png" for n in ("0-test-0", "1-mine") for s in ("", "-surfaces")}
    for path in out.iterdir():
        with Image.open(path) as figure:
            levels = np.asarray(figure.convert("L"))
        assert min(levels.shape) > 200 and levels.std() > 5


def test_what_is_asked_for_must_be_there(workdir, tmp_path):
    test = data.load().test
    subject = inspect.of_run(workdir)._replace(test=test)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    file = [str(tmp_path / "black.png")]
    shown = inspect.pictures(["test:0-1", *file], subject)
    assert [picture.name for picture in shown] == ["test-0", "test-1", "black"]
    assert gradcam.classes_of([], subject, shown) == [gradcam.PREDICTED] * 3
    assert gradcam.classes_of(["7"], subject, shown) == [7, 7, 7]
    assert gradcam.classes_of(["7", "1", "0"], subject, shown) == [7, 1, 0]
    labels = test.labels[:2].tolist()
    assert gradcam.classes_of(["true"], subject, shown[:2]) == labels

    (tmp_path / "empty").mkdir()
    for images, classes, message in (
        (["test:360"], [], "test:360 is not there, allowed: test:0 to test:359"),
        (["test:3-1"], [], "test:3-1 has no image, allowed: test:FIRST-LAST"),
        ([str(tmp_path / "empty")], [], "has no image"),
        (["absent.png"], [], "absent.png cannot be read: No such file"),
        ([f"{workdir}/config.json"], [], "not an image that Pillow can read"),
        (["test:0-2"], ["1", "2"], "--classes has 2 names for 3 images"),
        (["test:0"], ["ten"], "unknown class 'ten'"),
        (file, ["true"], "--classes=true: the label of black is not known"),
    ):
        with pytest.raises(UserError, match=message):
            gradcam.classes_of(classes, subject, inspect.pictures(images, subject))
    with pytest.raises(UserError, match="test:0 is an image of a run"):
        inspect.pictures(["test:0"], subject._replace(test=None))
    with pytest.raises(UserError, match="images of 8×12 pixels and 1 channels do not come from"):
        inspect.pictures(
            file, subject._replace(images=subject.images._replace(image_shape=(8, 12, 1)))
        )


def test_mistakes_get_one_line():
    result = run_here("gradcam", "--images=test:0")
    assert result.returncode == 1
    assert result.stderr == "error: give either --workdir=RUN or --network=DIR\n"


def test_a_network_from_pytorch(tmp_path):
    tensors, saved = tmp_path / "resnet8.safetensors", tmp_path / "network"
    save_file(golden_tensors(golden("models_cifar")["resnet8"]["tensors"]), tensors)
    scale = {"mean": [0.5], "std": [0.2, 0.25, 0.3]}
    with pytest.raises(UserError, match=r"allowed: one number each or 3"):
        import_torch(tensors, "resnet8", 100, saved, **scale)
    import_torch(tensors, "resnet8", 100, saved, **scale | {"mean": [0.4, 0.5, 0.6]})
    subject = inspect.of_network(saved)
    assert subject.images.image_shape == (32, 32, 3)

    pixels = np.zeros((64, 48, 3), np.uint8)
    pixels[8:20, 8:20] = 200
    square = str(tmp_path / os.fsdecode(b"caf\xe9[red]$.png"))  # not UTF-8
    Image.fromarray(pixels).save(square)
    shown = inspect.pictures([square], subject)
    (seen,) = gradcam.viewer(subject)(shown[0], 42)
    assert seen.heat.shape == (1, 32, 32) and seen.shown.tolist() == [42]
    network, variables, _ = orc_jax.load_network(saved)
    images = (shown[0].pixels[None] / 255 - np.array([0.4, 0.5, 0.6])) / np.array(scale["std"])
    logits = network.apply(variables, images, train=False)
    np.testing.assert_allclose(seen.probabilities, nn.softmax(logits), rtol=1e-4)
    found = orc_jax.load(saved).predict(shown[0].pixels[None])
    np.testing.assert_allclose(found, seen.probabilities, rtol=1e-4)
    written = gradcam.draw(subject, shown, [42], tmp_path / "out")
    assert [path.name for path in written] == [
        "0-caf\\udce9[red]$.png",
        "0-caf\\udce9[red]$-surfaces.png",
    ]
