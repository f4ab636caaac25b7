"""Methods, networks and data sets from outside the package."""

import dataclasses
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK, pixels, readme_code, run_command, tiny_config, tiny_data
from test_step import build, run

import orc_jax
from orc_jax import losses, methods, models, recipes
from orc_jax.errors import UserError
from orc_jax.insight.report import findings
from orc_jax.methods.method import Batch, Method, Roles
from orc_jax.models.network import Network, Outputs
from orc_jax.trained import networks

NETS = """
import flax.linen as nn
from conftest import pixels
from orc_jax.models.layers import Head
from orc_jax.models.network import Network


def small(num_classes, norm):
    return pixels(5, (2, 2), num_classes, norm)

NUMBER = 3


class Layer(nn.Module):
    # On the mean of the pixels, without batch norm; it is no `Stage`.
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(6)(x.mean(axis=(1, 2), keepdims=True))


def seven(num_classes, norm):
    return plain(7, norm)


def alone(num_classes):
    return plain(num_classes, None)


def headless(num_classes, norm):
    return Network(Layer(), [Layer()], Layer())


def plain(num_classes, norm):
    return Network(Layer(), [Layer(), Layer()], Head(num_classes))
"""
DATA = """
from conftest import tiny_data

def load(config):
    return tiny_data(train=config.batch_size * 4)

def wrong(config):
    return 1, 2
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder with the modules `best` (the README's), `nets` and `mydata`, on Python's path."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "best.py").write_text(readme_code("METHOD = Method("))
    (folder / "nets.py").write_text(NETS)
    (folder / "mydata.py").write_text(DATA)
    (folder / "broken.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("best", "nets", "mydata"):
        sys.modules.pop(name, None)


def test_the_readmes_own_method_as_it_stands(outside, tmp_path):
    """Trained by its import name, on networks and data from outside too; then used elsewhere."""
    code = (outside / "best.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    config = tiny_config(("nets:small",) * 3, "best:METHOD")
    config.data.name = "mydata:load"
    result = orc_jax.train(config, tmp_path / "run")
    logged = result.metrics["train"]
    assert sum(logged["promotions"]) == 4 and logged["learned"] == [1, 1, 1]
    assert set(logged["term_share"]) == {"ce", "kd"} and logged["term_share"]["kd"] > 0

    # Another process imports them by themselves.
    env = QUICK | {"PYTHONPATH": f"{outside}:tests"}
    shown = run_command("-m", "orc_jax", "evaluate", f"--workdir={tmp_path / 'run'}", env=env)
    assert f"{result.metrics['test']['top1'][0]:.2f}" in shown.stdout
    for command in (
        lambda: orc_jax.train(config, tmp_path / "run"),  # resumes
        lambda: findings.find(tmp_path / "run", "last", ""),  # of a report
        lambda: networks.from_run(tmp_path / "run"),  # of an export
    ):
        for name in ("best", "nets", "mydata"):
            sys.modules.pop(name, None)
        command()
        assert "best" in sys.modules
    model = orc_jax.load(tmp_path / "run")
    images = tiny_data()[2]
    assert model.predict(images).shape == (len(images), 5)
    config.seed = 3
    with pytest.raises(UserError, match="belongs to a run with another config"):
        orc_jax.train(config, tmp_path / "run")
    config.peers = config.peers[:1]
    with pytest.raises(UserError, match="best needs two networks or more"):
        orc_jax.train(config, tmp_path / "other")


def test_a_network_without_batch_norm(outside, tmp_path):
    """It has no statistics; and no blocks that could be computed again."""
    config = tiny_config(("nets:plain", "pixels"), "dml")
    result = orc_jax.train(config, tmp_path / "run", tiny_data())
    network, variables, _ = orc_jax.load_network(tmp_path / "run" / "networks" / "0")
    assert variables["batch_stats"] == {}
    images = np.zeros((2, 8, 8, 1), np.float32)
    assert network.apply(variables, images, train=False).shape == (2, 5)
    again = orc_jax.evaluate(tmp_path / "run", data=tiny_data())
    assert again == result.metrics["test"]
    config.remat = True
    with pytest.raises(UserError, match="remat needs a network whose stages are made of `Stage`"):
        orc_jax.train(config, tmp_path / "other", tiny_data())


def test_a_trunk_needs_equal_networks(monkeypatch):
    """Whatever the method itself checks."""
    trunk = Method(settings={}, loss=methods.get("ind").loss, needs=methods.get("one").needs)
    monkeypatch.setitem(methods.METHODS, "trunk", trunk)
    with pytest.raises(UserError, match=r"peers\[1\].model differs from that of peers\[0\]"):
        build(tiny_config(("pixels", "pixels_wide"), "trunk"))


def test_a_preset_can_name_a_method_from_outside(outside):
    table = {"ind": recipes.Recipe("ind", ("resnet8",) * 4, {"epochs": 7})}
    config = recipes.build("f", table, "best:METHOD")
    assert config.method.name == "best:METHOD" and config.method.weight == 1.0
    assert config.epochs == 7 and len(config.peers) == 4
    config = recipes.build("f", table, "best:METHOD:resnet14,nets:small")
    assert [peer.model for peer in config.peers] == ["resnet14", "nets:small"]
    with pytest.raises(UserError, match="unknown preset of f 'inf': did you mean 'ind'"):
        recipes.build("f", table, "inf:resnet8")


def test_registered_names(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))

    def small(num_classes, norm):
        return pixels(5, (2, 2), num_classes, norm)

    plain = Method(settings={"weight": 2.0}, loss=methods.get("ind").loss)
    orc_jax.register_method("mine", plain)
    orc_jax.register_network("small", small)
    orc_jax.register_method("mine", plain)  # a module that is imported twice
    orc_jax.register_network("small", small)
    config = tiny_config(("small", "small"), "mine")
    assert config.method.weight == 2.0
    _, state = run(config, 1)
    assert int(state.step) == 1
    with pytest.raises(UserError, match="there is a method 'dml' already"):
        orc_jax.register_method("dml", plain)
    with pytest.raises(UserError, match="there is a network 'resnet8' already"):
        orc_jax.register_network("resnet8", small)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "nowhere:METHOD"}, "the method 'nowhere:METHOD' cannot be imported .*nowhere"),
        ({"method": "broken:METHOD"}, "cannot be imported .*No module named 'no_such_module'"),
        ({"method": "best:METHODS"}, "unknown name in best 'METHODS': did you mean 'METHOD'"),
        ({"method": "best:loss"}, "the method 'best:loss' is of type function, expected"),
        ({"model": "nets:NUMBER"}, "the network 'nets:NUMBER' is of type int, expected a function"),
        ({"model": "nets:pixels_"}, "unknown name in nets 'pixels_': did you mean 'pixels'"),
        ({"model": "nets:seven"}, r"'nets:seven' gives logits of shape \(1, 7\) .* \(1, 5\), one"),
        ({"model": "nets:alone"}, r"'nets:alone' cannot be built by \(num_classes, norm\)"),
        ({"model": "nets:headless"}, r"the head Layer must return \(logits, features\)"),
        ({"data": "mydata:nothing"}, "unknown name in mydata 'nothing'"),
        (
            {"data": "mydata:wrong"},
            "what mydata:wrong returns is not four arrays .train images.* but 2 of them",
        ),
    ],
)
def test_what_cannot_be_imported_gets_one_line(outside, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        config = tiny_config((change.get("model", "pixels"),) * 2, change.get("method", "dml"))
        config.data.name = change.get("data", "mydata:load")
        orc_jax.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def terms_of(change):
    """A method whose loss returns what `change` makes of the right terms."""

    def loss(config, batch: Batch):
        return change({"ce": losses.cross_entropy(batch.logits, batch.truth).mean(axis=1)})

    return Method(settings={}, loss=loss)


def roles_of(change):
    """A method whose phase returns what `change` makes of the right roles."""

    def phase(config, batch: Batch, key):
        return change(Roles(learns=jnp.ones(len(batch.logits), bool)))

    return dataclasses.replace(methods.get("ind"), phase=phase)


@pytest.mark.parametrize(
    "method, message",
    [
        (terms_of(lambda t: t["ce"]), "loss returns float32 of shape .2,., expected a dict"),
        (terms_of(lambda t: {}), "loss returns dict, expected a dict"),
        (terms_of(lambda t: {3: t["ce"]}), "loss names a term 3, expected a name"),
        (terms_of(lambda t: {"a/b": t["ce"]}), "loss names a term 'a/b', expected a name"),
        (
            terms_of(lambda t: t | {"kd": jnp.zeros((2, 16))}),
            r"the term 'kd' as float32 of shape \(2, 16\), expected .* of shape \(2,\)",
        ),
        (terms_of(lambda t: t | {"kd": t["ce"] > 0}), "the term 'kd' as bool of shape"),
        (terms_of(lambda t: t | {"kd": [1.0, 2.0]}), "the term 'kd' as list"),
        (roles_of(lambda r: None), "phase returns NoneType, expected Roles"),
        (roles_of(lambda r: r._replace(learns=jnp.ones(3, bool))), "gives learns as bool of shape"),
        (roles_of(lambda r: r._replace(learns=None)), "gives learns as NoneType"),
        (roles_of(lambda r: r._replace(promoted=jnp.ones(2))), "gives promoted as float32"),
        (roles_of(lambda r: r._replace(learns_from=r.learns)), "gives learns_from as bool"),
        (roles_of(lambda r: r._replace(metrics={"x": jnp.ones(5)})), "gives the metric 'x' as"),
    ],
)
def test_a_wrong_term_or_role_gets_one_line(tmp_path, monkeypatch, method, message):
    monkeypatch.setitem(methods.METHODS, "mine", method)
    with pytest.raises(UserError, match=message) as error:
        orc_jax.train(tiny_config(("pixels",) * 2, "mine"), tmp_path / "run", tiny_data())
    assert str(error.value).startswith(f"{__file__}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@flax.struct.dataclass
class Deep(Outputs):
    """Outputs with the last stage's activations."""

    last: jax.Array | None = None


class DeepNetwork(Network):
    """A network that also gives the activations of its last stage."""

    def outputs(self, images, train, auxiliary=False):
        plain = super().outputs(images, train, auxiliary)
        x = self.stem(images, train)
        return Deep(plain.logits, plain.features, plain.trunk, plain.auxiliary, last=x)


def test_a_new_field_of_outputs_reaches_the_method_and_its_gradient_the_network(monkeypatch):
    """From the network to the loss and back, without a change in between."""

    def deep(num_classes, norm):
        plain = pixels(6, (2, 2), num_classes, norm)
        return DeepNetwork(plain.stem, plain.stages, plain.head)

    def loss(config, batch: Batch):
        assert batch.outputs.last.shape[:2] == batch.logits.shape[:2]
        return {"activations": jnp.square(batch.outputs.last).mean(axis=(1, 2, 3, 4))}

    monkeypatch.setitem(methods.METHODS, "deep", Method(settings={}, loss=loss))
    monkeypatch.setitem(models.NETWORKS, "deep", models.Entry(deep, torch_names=()))
    config = tiny_config(("deep", "deep"), "deep")
    config.optimizer.weight_decay = 0.0
    _, before, _, _ = build(config)
    before = jax.device_get(before.stacks[0].members.params)
    _, after = run(config, 1)
    after = jax.device_get(after.stacks[0].members.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after, before)
    assert max(jax.tree.leaves(moved["stem"])) > 1e-4
    assert max(jax.tree.leaves(moved["head"])) == 0
