"""The loop from Python: arrays in, resumable runs, pretrained peers, failures."""

import csv
import json
import math
import os
import shutil

import jax
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal, golden, golden_tensors, readme_code, tiny_config, tiny_data

import orc_jax
from orc_jax import peers
from orc_jax.errors import UserError
from orc_jax.prepare import prepare
from orc_jax.runtime import metrics
from orc_jax.runtime.checkpoints import Checkpoints
from orc_jax.state import init_state
from orc_jax.trained import saved


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, work directory, result) of a run of four epochs on arrays."""
    workdir = tmp_path_factory.mktemp("run") / "a"
    config = tiny_config()
    config.epochs = 4
    return config, workdir, orc_jax.train(config, workdir, tiny_data(train=80))


def test_it_learns(finished):
    _, _, result = finished
    assert result.finished and result.metrics["epoch"] == 4
    assert max(result.metrics["test"]["top1"]) > 50  # five classes: chance is 20


def test_metrics_and_roles_files(finished):
    _, workdir, result = finished
    records = metrics.read(workdir)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert records[-1] == json.loads(json.dumps(result.metrics))
    for record in records:
        train = record["train"]
        assert sum(train["promotions"]) == 5 and train["promotions"][0] == 0
        assert sum(train["term_share"].values()) == pytest.approx(1, abs=1e-5)
        assert train["asked"][0] == 0 and sum(train["asked"]) == pytest.approx(1, abs=1e-5)
        assert len(record["test"]["top5"]) == 4 and record["test"]["ensemble"]["top5"] == 100
    total = np.sum([record["train"]["promotions"] for record in records], axis=0)
    assert records[-1]["train"]["promotions_total"] == total.tolist()
    assert result.state.promotions.tolist() == total.tolist()

    with (workdir / "roles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert [int(row["promotions_total"]) for row in rows[-4:]] == total.tolist()
    assert list((workdir / "tensorboard").glob("events.*"))


def test_evaluation_is_right_and_counts_each_image_once(finished):
    """Top-1 of a peer, recomputed with its network alone on the 21 test images."""
    config, _, result = finished
    setup = prepare(config, tiny_data(train=80))
    split = setup.test_split
    images = (np.asarray(split.images) / 255 - np.asarray(split.mean)) / np.asarray(split.std)
    probs = []
    for stack, state in zip(setup.group.stacks, result.state.stacks, strict=True):
        for i, peer in enumerate(stack.peers):
            variables = {"params": state.members.params, "batch_stats": state.members.stats}
            variables = jax.tree.map(lambda x, i=i: x[i], variables)
            logits = stack.module.apply(variables, images.astype(np.float32), train=False)
            right = np.asarray(logits).argmax(axis=1) == np.asarray(split.labels)
            assert result.metrics["test"]["top1"][peer] == pytest.approx(100 * right.mean())
            probs.append(jax.nn.softmax(logits))
    right = np.mean(probs, axis=0).argmax(axis=1) == np.asarray(split.labels)
    assert result.metrics["test"]["ensemble"]["top1"] == pytest.approx(100 * right.mean())


def test_evaluate_restores_the_same_numbers(finished):
    _, workdir, result = finished
    data = tiny_data(train=80)
    assert orc_jax.evaluate(workdir, data=data) == result.metrics["test"]
    records = metrics.read(workdir)
    best = max(records, key=lambda record: max(record["test"]["top1"][1:]))
    score = max(orc_jax.evaluate(workdir, "best", data)["top1"][1:])
    assert score == max(best["test"]["top1"][1:])
    with pytest.raises(UserError, match="no checkpoint '7', there are: last, best"):
        orc_jax.evaluate(workdir, "7", data)
    with pytest.raises(UserError, match="trained on arrays"):
        orc_jax.evaluate(workdir)


def test_the_same_call_again_changes_nothing(finished):
    config, workdir, result = finished
    again = orc_jax.train(config, workdir, tiny_data(train=80))
    assert again.finished and again.metrics == json.loads(json.dumps(result.metrics))
    assert_trees_equal(again.state, result.state)
    assert len(metrics.read(workdir)) == 4


def test_another_config_is_refused(finished):
    config, workdir, _ = finished
    other = config.copy_and_resolve_references()
    other.method.temperature = 2.0
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=r"another config \(method.temperature: 4.0 → 2.0\)"):
        orc_jax.train(other, workdir, tiny_data(train=80))
    assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize("kept", ["nothing", "a teacher"])
def test_a_directory_in_which_nothing_was_finished_is_no_obstacle(tmp_path, kept):
    config, data = tiny_config(("pixels", "pixels"), "dml"), tiny_data()
    workdir = tmp_path / "run"
    orc_jax.train(config, workdir, data)
    for part in ("checkpoints", "networks"):
        shutil.rmtree(workdir / part)
    if kept == "a teacher":
        (workdir / "teachers" / "0-pixels" / "checkpoints" / "3" / "state").mkdir(parents=True)
    config.seed, config.method.temperature = 7, 2.0
    if kept == "a teacher":
        with pytest.raises(UserError, match="belongs to a run with another config"):
            orc_jax.train(config, workdir, data)
        return
    again = orc_jax.train(config, workdir, data)
    assert json.loads((workdir / "config.json").read_text())["seed"] == 7
    fresh = orc_jax.train(config, tmp_path / "fresh", data)
    assert_trees_equal(again.state, fresh.state)
    assert len(metrics.read(workdir)) == 2


def test_what_is_seldom_meant_gets_a_line(tmp_path, capsys):
    config = tiny_config(("resnet10",), "ind")
    config.epochs, config.data.pad = 1, 0
    images = np.random.default_rng(0).integers(0, 255, (51, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(51) % 3
    few = images[:1], labels[:1]
    orc_jax.train(config, tmp_path / "run", (images, labels, *few))
    said = " ".join(capsys.readouterr().out.split())
    assert "51 training, 1 test image)" in said
    assert "warning: resnet10 is made for images of 224×224, and begins by making these" in said
    assert "ResNet10 is made for small ones" in said
    assert "warning: with 1 test image, one is 100.0 % of the accuracy" in said
    assert "top-1 %" in said and "top-5" not in said  # of three classes


def test_only_the_last_and_best_checkpoints_stay(finished):
    _, workdir, _ = finished
    steps = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert "20" in steps and len(steps) <= 2


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"not empty and not a work directory: thesis\.tex"):
        orc_jax.train(tiny_config(), tmp_path, tiny_data())
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_resuming_drops_lines_written_after_the_checkpoint(tmp_path):
    """A run that evaluated further than its last checkpoint repeats those epochs."""
    config = tiny_config()
    config.epochs = 3
    config.checkpoint_every = 2
    full = orc_jax.train(config, tmp_path / "full", tiny_data())
    with Checkpoints(tmp_path / "full") as checkpoints:
        assert checkpoints.step("last") == 9
        state = checkpoints.restore_arrays(9)
    # The run was killed in epoch 3 while it wrote a line.
    shutil.rmtree(tmp_path / "full" / "checkpoints" / "9")
    with (tmp_path / "full" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')
    resumed = orc_jax.train(config, tmp_path / "full", tiny_data())
    assert_trees_equal(resumed.state, full.state)
    assert [record["epoch"] for record in metrics.read(tmp_path / "full")] == [1, 2, 3]
    with Checkpoints(tmp_path / "full") as checkpoints:
        assert_trees_equal(checkpoints.restore_arrays(9)["stacks"], state["stacks"])


def test_peers_start_from_checkpoints(finished, tmp_path):
    """The pivot from a run of ours, a student from a PyTorch file."""
    _, workdir, _ = finished
    case = golden("models_cifar")["resnet8"]["tensors"]
    tensors = golden_tensors(case)
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]
    tensors["fc.weight"], tensors["fc.bias"] = tensors["fc.weight"][:5], tensors["fc.bias"][:5]
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "resnet8.pth")

    config = tiny_config(("pixels_wide", "resnet8", "pixels", "pixels"))
    config.peers[0].init_from = str(workdir)
    config.peers[1].init_from = str(tmp_path / "resnet8.pth")
    config.peers[2].init_from = f"{workdir}:3"
    config.epochs = 1
    config.optimizer.learning_rate = 0.0
    result = orc_jax.train(config, tmp_path / "run", tiny_data(train=80))
    with Checkpoints(workdir) as checkpoints:
        source = checkpoints.restore_arrays(checkpoints.step("last"))["stacks"]
    pivot, imported, students = result.state.stacks
    assert_trees_equal(pivot.members.params, source[0]["members"]["params"])
    assert_trees_equal(
        jax.tree.map(lambda x: x[0], students.members.params),
        jax.tree.map(lambda x: x[2], source[1]["members"]["params"]),
    )
    kernel = imported.members.params["stem"]["conv1"]["kernel"][0]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))


def test_a_run_gives_its_last_checkpoint_or_another_one(finished, monkeypatch):
    """RUN:PEER, and @best or @STEP behind it."""
    setup = prepare(tiny_config(("pixels",) * 3), tiny_data(train=80))
    of_checkpoint, asked = saved.of_checkpoint, []

    def recorded(workdir, which):
        asked.append(which)
        return of_checkpoint(workdir, which)

    monkeypatch.setattr(saved, "of_checkpoint", recorded)
    for which in ("", "@best", "@20"):
        saved.pretrained(setup.group, {0: f"{finished[1]}:2{which}"}, setup.images)
    assert asked == ["last", "best", "20"]


def test_classes_in_another_order_are_reordered_and_others_refused(tmp_path):
    setup = prepare(tiny_config(("pixels",), "ind"), tiny_data(train=80))
    variables = peers.plain_variables(
        setup.group.stacks, jax.device_get(init_state(*setup.state_args(), {}).stacks), 0
    )
    variables["params"]["head"]["fc"]["bias"] = np.arange(5, dtype=np.float32)
    description = {"network": "pixels", "num_classes": 5, "class_names": list("abcde")}
    saved.save(tmp_path / "network", variables, description)

    def bias(names):
        sources = {0: str(tmp_path / "network")}
        found, _ = saved.pretrained(setup.group, sources, setup.images, tuple(names))
        return found[0]["params"]["head"]["fc"]["bias"].tolist()

    assert bias("abcde") == bias("01234") == [0, 1, 2, 3, 4]
    assert bias("bacde") == [1, 0, 2, 3, 4]
    with pytest.raises(
        UserError, match=r"other classes: it knows d, e, the data x, y .new_head=True takes"
    ):
        bias("abcxy")


def test_metrics_are_strict_json(tmp_path):
    with metrics.Writers(tmp_path, ["pixels", "tiny"], 0) as writers:
        record = {"epoch": 1, "step": 5, "train": {"gap": float("nan"), "loss": [1.0, math.inf]}}
        writers.write(record | {"images_per_second": 1.0, "seconds": 1.0})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert found["train"] == {"gap": None, "loss": [1.0, None]}


def test_two_peers_that_start_alike_get_a_warning(finished, tmp_path, capsys):
    config = tiny_config(("pixels",) * 3, "dml")
    config.epochs = 1
    for i in (0, 2):
        config.peers[i].init_from = f"{finished[1]}:1"
    orc_jax.train(config, tmp_path / "run", tiny_data(train=80))
    assert "warning: peers 0, 2 start from the same network" in capsys.readouterr().out


@pytest.mark.parametrize(
    "peer, source, message",
    [
        (0, "{run}/nothing", "no such checkpoint"),
        (0, "{run}@7", "7"),
        (1, "{run}", "has several: write .*:PEER, PEER of 1, 2, 3"),
        (1, "{run}:0", "has no pixels '0', allowed: 1, 2, 3"),
        (2, "{run}", "trained pixels_wide, pixels, pixels, pixels; none is a resnet8"),
        (0, "{run}/checkpoints", "not a work directory"),
    ],
)
def test_wrong_checkpoints_to_start_from(finished, tmp_path, peer, source, message):
    config = tiny_config(("pixels_wide", "pixels", "resnet8"))
    config.peers[peer].init_from = source.format(run=finished[1])
    with pytest.raises(UserError, match=rf"peers\[{peer}\].init_from: .*{message}"):
        orc_jax.train(config, tmp_path / "run", tiny_data())
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_for_other_classes_is_refused(finished, tmp_path):
    config = tiny_config(("pixels_wide", "pixels", "pixels"))
    config.peers[0].init_from = str(finished[1])
    with pytest.raises(UserError, match="other images or classes"):
        orc_jax.train(config, tmp_path / "run", tiny_data(num_classes=3))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = tiny_config()
    config.epochs = 6
    config.peers[2].optimizer.schedule = "step"
    config.peers[2].optimizer.decay_epochs = (2,)
    config.peers[2].optimizer.decay = 1e30  # its weights explode after two epochs
    with pytest.raises(UserError) as error:
        orc_jax.train(config, tmp_path / "run", tiny_data())
    message = str(error.value)
    assert "peer 2 (pixels) is not finite from step" in message
    assert "the checkpoint of step 6 is kept" in message
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.step("last") == 6
        state = checkpoints.restore_arrays(6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["stacks"]))


def test_two_optimizers_in_one_run(tmp_path):
    config = tiny_config(("pixels_wide", "pixels", "pixels"))
    config.peers[1].optimizer.name = "adam"
    config.peers[1].optimizer.learning_rate = 0.01
    config.peers[2].optimizer.learning_rate = 0.0
    config.epochs = 1
    result = orc_jax.train(config, tmp_path / "run", tiny_data())
    assert len(result.state.stacks) == 3
    assert (np.asarray(result.state.failed_at) == -1).all()


def test_other_arrays_in_the_same_work_directory_are_refused(finished):
    config, workdir, _ = finished
    with pytest.raises(UserError, match="on other images or labels"):
        orc_jax.train(config, workdir, tiny_data(seed=1, train=80))


def test_the_best_epoch_is_kept_between_checkpoints(tmp_path):
    config = tiny_config()
    config.epochs = 5
    config.checkpoint_every = 5
    config.optimizer.learning_rate = 0.2
    orc_jax.train(config, tmp_path / "run", tiny_data(train=80))
    records = metrics.read(tmp_path / "run")
    scores = [max(record["test"]["top1"][1:]) for record in records]
    with Checkpoints(tmp_path / "run") as checkpoints:
        kept = checkpoints.step("best") // 5
    assert scores[kept - 1] == max(scores)


def test_resuming_needs_no_pretrained_weights_again(finished, tmp_path):
    config = tiny_config()
    config.peers[0].init_from = str(tmp_path / "pivot")
    config.epochs = 1
    shutil.copytree(finished[1], tmp_path / "pivot")
    orc_jax.train(config, tmp_path / "run", tiny_data(train=80))
    shutil.rmtree(tmp_path / "pivot")
    config.peers[0].init_from = os.path.relpath(tmp_path / "pivot")  # the same place
    assert orc_jax.train(config, tmp_path / "run", tiny_data(train=80)).finished


def test_a_kill_before_the_config_was_written_does_no_harm(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.new").write_text("{")
    config = tiny_config()
    config.epochs = 1
    assert orc_jax.train(config, tmp_path / "run", tiny_data()).finished


def test_a_crop_larger_than_the_image(tmp_path):
    config = tiny_config()
    config.data.pad = 8
    with pytest.raises(
        UserError, match=r"data\.pad is 8, allowed: less than the images' size, 8×8"
    ):
        orc_jax.train(config, tmp_path / "run", tiny_data())


def test_batch_larger_than_the_data(tmp_path):
    config = tiny_config()
    config.batch_size = 64
    with pytest.raises(UserError, match="batch_size is 64, allowed: at most the 50 training"):
        orc_jax.train(config, tmp_path / "run", tiny_data())


def test_the_target_is_the_best_of_the_smallest_networks():
    test = {"top1": [90.0, 70.0, 72.0, 80.0]}
    assert metrics.target_top1(test, [0, 1, 2, 3], [900, 100, 100, 400]) == 72.0
    assert metrics.target_top1(test, [0, 1, 2, 3], [100, 100, 100, 100]) == 90.0
    assert metrics.target_top1(test, [1, 2, 3], [100, 100, 100, 100]) == 80.0


def test_the_readmes_python_example_as_it_stands(tmp_path, monkeypatch):
    train_x, train_y, test_x, test_y = tiny_data(train=64)
    monkeypatch.chdir(tmp_path)
    names = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    code = readme_code("orc_jax.train(").replace('"resnet8"', '"pixels"')  # to compile faster
    exec(code, names)
    assert names["result"].finished and (tmp_path / "runs" / "mine" / "config.json").exists()
    network, variables, about = orc_jax.load_network("runs/mine/networks/1")
    assert network.apply(variables, np.zeros((1, *about["image_shape"])), train=False).shape[1] == 5


def test_warnings_of_a_rate_that_never_falls_and_of_few_test_images(tmp_path, capsys):
    config = tiny_config(("pixels",), "ind")
    config.epochs, config.optimizer.schedule = 1, "step"
    orc_jax.train(config, tmp_path / "run", tiny_data(train=80))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "rate of peers 0 never falls, because none of its decay_epochs (100, 150) is below" in said
    )
    assert "with 21 test images, one is 4.8 % of the accuracy" in said
    config.optimizer.decay_epochs = (0.5,)
    orc_jax.train(config, tmp_path / "falls", tiny_data(train=80, test=50))
    assert "warning:" not in capsys.readouterr().out
