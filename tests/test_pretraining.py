"""Teachers that a run trains first: in one command, once, resumable, with their own settings."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal, tiny_config, tiny_data
from test_methods import LABELS, batch_of, config_of, loss_and_gradient, random_logits
from test_step import build, in_peer_order, other_images

import orc_jax
from orc_jax import checks, losses, methods, peers, pretraining
from orc_jax.errors import UserError
from orc_jax.insight.inspect import of_run
from orc_jax.runtime.signals import Interruption, Stopped
from orc_jax.trained.networks import from_run
from orc_jax.trained.networks import logits as logits_of

DATA = tiny_data(train=80)
CHAIN = ("pixels_wide", "tiny", "pixels")


def config_with_teacher(name="kd", networks=("pixels_wide", "pixels"), **method):
    config = tiny_config(networks, name, **method)
    config.epochs = 1
    return config


def network(workdir):
    """The variables of a saved network."""
    return orc_jax.load_network(workdir)[1]


def test_kd_trains_its_teacher_first_and_only_once(tmp_path, monkeypatch):
    config = config_with_teacher()
    config.pretrain.epochs = 2
    run = tmp_path / "run"
    first = orc_jax.train(config, run, DATA)
    assert first.finished
    teacher = run / "teachers" / "0-pixels_wide"
    own = json.loads((teacher / "config.json").read_text())
    assert (own["epochs"], own["method"]["name"], len(own["peers"])) == (2, "ind", 1)
    assert [path.name for path in (run / "networks").iterdir()] == ["1"]

    # The group has that teacher; a run with `init_from` is the same run.
    given = config_with_teacher()
    given.pretrain.epochs = 2
    given.peers[0].init_from = str(teacher / "networks" / "0")
    second = orc_jax.train(given, tmp_path / "given", DATA)
    assert not (tmp_path / "given" / "teachers").exists()
    assert_trees_equal(first.state.stacks, second.state.stacks)
    (frozen, _) = first.state.stacks
    in_group = jax.tree.map(lambda x: x[0], frozen.members.params)
    assert_trees_equal(in_group, network(teacher / "networks" / "0")["params"])

    monkeypatch.setattr(pretraining.Teacher, "is_trained", property(lambda self: 1 / 0))
    assert orc_jax.train(config, run, DATA).finished  # does not even look


def test_a_run_that_is_stopped_while_it_trains_a_teacher_goes_on_to_the_same_bits(
    tmp_path, monkeypatch
):
    config = config_with_teacher("orc", ("pixels_wide", "pixels", "pixels"), pretrained=True)
    whole = orc_jax.train(config, tmp_path / "whole", DATA)

    calls = itertools.count()

    def check(self):
        self.requested = "SIGTERM"
        if next(calls) == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "check", check)
        stopped = orc_jax.train(config, tmp_path / "run", DATA)
    assert not stopped.finished and not (tmp_path / "run" / "checkpoints").exists()
    assert (tmp_path / "run" / "config.json").exists()
    resumed = orc_jax.train(config, tmp_path / "run", DATA)
    assert_trees_equal(resumed.state.stacks, whole.state.stacks)

    scratch = config_with_teacher("orc", ("pixels_wide", "pixels", "pixels"), pretrained=False)
    alone = orc_jax.train(scratch, tmp_path / "scratch", DATA)
    assert not (tmp_path / "scratch" / "teachers").exists()
    kernels = [
        state.stacks[0].members.params["head"]["fc"]["kernel"]
        for state in (whole.state, alone.state)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_a_mistake_of_the_group_is_found_before_its_teachers_are_trained(tmp_path):
    config = config_with_teacher("orc", ("pixels_wide", "pixels", "pixels"), pretrained=True)
    config.peers[1].init_from = str(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=r"peers\[1\].init_from: .*nothing.pth"):
        orc_jax.train(config, tmp_path / "run", DATA)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["takd", "dgkd"])
def test_a_chain_is_trained_from_the_teacher_down(tmp_path, name):
    config = config_with_teacher(name, CHAIN)
    result = orc_jax.train(config, tmp_path / "run", DATA)
    folders = tmp_path / "run" / "teachers"
    assert sorted(path.name for path in folders.iterdir()) == ["0-pixels_wide", "1-tiny"]
    first, second = (
        json.loads((folders / folder / "config.json").read_text())
        for folder in ("0-pixels_wide", "1-tiny")
    )
    assert first["method"]["name"] == "ind"
    assert second["method"]["name"] == name
    assert [peer["model"] for peer in second["peers"]] == ["pixels_wide", "tiny"]
    assert second["peers"][0]["init_from"].endswith("teachers/0-pixels_wide/networks/0")
    for stack, source in zip(
        result.state.stacks, ("0-pixels_wide/networks/0", "1-tiny/networks/1"), strict=False
    ):
        in_group = jax.tree.map(lambda x: x[0], stack.members.params)
        assert_trees_equal(in_group, network(folders / source)["params"])
    assert result.metrics["train"]["learned"] == [0, 0, 1]


def test_settings_of_teachers(tmp_path):
    config = config_with_teacher("dgkd", ("pixels_wide", "pixels", "tiny", "pixels"))
    config.pretrain.optimizer.learning_rate = 0.3
    config.peers[1].init_from = "given"
    config.mesh.peer = 2
    first, third = pretraining.teachers(config, tmp_path)
    assert (first.peer, third.peer) == (0, 2)
    assert first.config.peers[0].optimizer.learning_rate == 0.3
    assert (first.config.mesh.data, first.config.mesh.peer) == (-1, 1)
    assert [peer.init_from for peer in third.config.peers] == [str(first.network), "given", None]
    assert third.config.peers[0].optimizer.learning_rate is None
    assert third.config.peers[2].optimizer.learning_rate == 0.3
    assert third.network == tmp_path / "teachers" / "2-tiny" / "networks" / "2"
    assert pretraining.wanted(tiny_config(pivot=None, pretrained=True)) == {}
    for key, value in (("epochs", -1), ("optimizer.schedule", "cosinus")):
        wrong = config_with_teacher()
        wrong.pretrain.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=f"pretrain.{key}"):
            checks.check(wrong, 1)


def test_the_pivot_has_a_rate_of_its_own():
    config = tiny_config(("pixels",) * 3, pivot_rate=0.1, intensive=False)
    stacks = peers.layout(config, methods.get("orc"))
    assert [(stack.peers, round(stack.optimizer.learning_rate, 6)) for stack in stacks] == [
        ((0,), 0.005),
        ((1, 2), 0.05),
    ]


def test_takd_by_hand():
    """The network before it alone teaches the last one."""
    z, config = random_logits(3)[:3], config_of("takd", weight=0.3, temperature=2.0)
    loss, gradient = loss_and_gradient("takd", config, z, LABELS)
    expected = 0.7 * losses.cross_entropy(z[2], jnp.asarray(LABELS)).mean()
    expected += 0.3 * losses.kd(z[2], z[1], 2.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not np.any(gradient["logits"][:2]) and np.any(gradient["logits"][2])


@pytest.mark.parametrize("drop, left", [(0, 3), (1, 2), (9, 1)])
def test_dgkd_by_hand(drop, left):
    """All before it teach the last one, but those that are left out in this step."""
    z = random_logits(4)
    config = config_of("dgkd", weight=0.3, temperature=2.0, drop=drop)
    chosen = np.zeros(3)
    for seed in range(8):
        batch = batch_of(z, LABELS)
        roles = methods.get("dgkd").phase(config, batch, jax.random.key(seed))
        teaches = np.array(roles.learns_from[-1, :-1])
        assert teaches.sum() == left and not np.any(roles.learns_from[:-1])
        terms = methods.get("dgkd").loss(config, batch._replace(roles=roles))
        expected = 0.7 * losses.cross_entropy(z[3], jnp.asarray(LABELS)).mean()
        expected += 0.3 * sum(losses.kd(z[3], z[j], 2.0) for j in np.flatnonzero(teaches))
        total = sum(jnp.sum(term) for term in terms.values())
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        chosen += teaches
    assert np.all(chosen > 0)


@pytest.mark.parametrize(
    "name, change", [("takd", {"weight": 1.5}), ("dgkd", {"drop": -1}), ("dgkd", {"drop": 0.5})]
)
def test_settings_of_chains_are_checked(name, change):
    config = config_of(name)
    with config.ignore_type():
        config.update(change)
    with pytest.raises(UserError, match=rf"method\.{next(iter(change))} is"):
        methods.check(config, ["pixels", "pixels"])


def darker(data):
    """The same images and labels, at half the brightness."""
    train, train_labels, test, test_labels = data
    return train // 2, train_labels, test // 2, test_labels


def test_a_teacher_sees_images_normalised_as_it_was_trained(tmp_path):
    """In a group, later runs, figures and exports: its accuracy is what it is by itself."""
    alone = tiny_config(("pixels_wide",), "ind")
    orc_jax.train(alone, tmp_path / "teacher", darker(DATA))
    teacher = orc_jax.load(tmp_path / "teacher")
    images, labels = DATA[2:]
    logits = np.asarray(teacher.logits(images))
    top1 = 100 * np.mean(logits.argmax(axis=1) == labels)

    config = config_with_teacher()
    config.epochs = 3
    config.peers[0].init_from = str(tmp_path / "teacher")
    run = tmp_path / "run"
    first = orc_jax.train(config, run, DATA)
    assert first.metrics["test"]["top1"][0] == pytest.approx(top1, abs=1e-4)
    assert first.metrics["test"]["loss"][0] == pytest.approx(
        float(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels)).mean()), rel=1e-5
    )
    assert orc_jax.evaluate(run, data=DATA)["top1"] == first.metrics["test"]["top1"]
    facts = json.loads((run / "run.json").read_text())
    assert facts["scales"] == {"0": teacher.images.scale()}

    ensemble = from_run(run, "ensemble")
    assert [images.scale() == teacher.images.scale() for images in ensemble.images] == [True, False]
    assert [peer.images.scale() for peer in of_run(run).peers] == [
        images.scale() for images in ensemble.images
    ]
    np.testing.assert_allclose(
        logits_of(ensemble._replace(peer=None), ensemble.variables, jnp.asarray(images)),
        logits,
        rtol=1e-4,
    )
    # A student of it, and a run that goes on with either.
    again = tiny_config(("pixels_wide", "pixels"), "dml")
    again.peers[0].init_from, again.peers[1].init_from = f"{run}:0", f"{run}/networks/1"
    again.epochs = 1
    orc_jax.train(again, tmp_path / "again", darker(DATA))
    scales = json.loads((tmp_path / "again" / "run.json").read_text())["scales"]
    assert scales == {"1": {name: facts[name] for name in ("mean", "std")}}
    saved = [
        json.loads((tmp_path / "again" / "networks" / peer / "network.json").read_text())
        for peer in "01"
    ]
    assert [about["mean"] for about in saved] == [teacher.images.mean.tolist(), facts["mean"]]


@pytest.mark.parametrize("name, networks", [("orc", CHAIN), ("kdcl", ("pixels",) * 3)])
def test_a_group_of_other_images_is_one_that_has_their_normalisation(name, networks):
    """In every pass: of the batch, of teachers that learn first, of a peer's own augmentation."""
    config = tiny_config(networks, name, **({"pivot": None} if name == "orc" else {}))
    setup, state, train_step, order = build(config, others=range(3))
    other = other_images(setup)
    plain, plain_state, plain_step, _ = build(config)
    for _ in range(3):
        state = train_step(state, setup.train_split, order)
        split = plain.train_split._replace(mean=other.mean, std=other.std)
        plain_state = plain_step(plain_state, plain.on_mesh(jax.device_get(split)), order)
    for row, expected in zip(
        in_peer_order(setup, state), in_peer_order(plain, plain_state), strict=True
    ):
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-5)
