"""Studies: how they are planned, trained from the command line, and reported."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, ROOT, TOO_LONG, run_command

from experiments import jobs, results, run, tables
from experiments import study as studies
from experiments.study import Study
from orc_jax.config import default_config, peer, to_json
from orc_jax.errors import UserError

# A warning of ml_collections for every config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

READY = [
    path for path in sorted((ROOT / "experiments").glob("*.py")) if "\nSTUDY = " in path.read_text()
]
CASES = [(path.stem, base) for path in READY for base in studies.load(str(path))[0].bases]
FAST = ("--config.epochs=1", "--config.data.train_images=64", "--config.checkpoint_every=1")


def planned(study, base, out, overrides=(), seeds=1):
    shared = studies.read_base(study, base, overrides, out)
    return shared, studies.plan(study, shared, list(study.variants), seeds)


def test_there_is_a_study_for_every_comparison():
    assert {path.stem for path in READY} == {
        *("orc_components", "orc_teaching", "orc_promotion", "orc_peers", "orc_feedback", "orc_k"),
        *("orc_pivot", "orc_temporary", "divergences"),
        *("methods", "okddip", "dcm", "switokd", "switokd_three", "group_size"),
    }
    for path in READY:
        bases = studies.load(str(path))[0].bases
        assert bases[0] == "configs/digits.py" and "configs/cifar100.py" in bases


@pytest.mark.parametrize("name, base", CASES)
def test_every_ready_study_is_valid(name, base, tmp_path):
    """`plan` checks every config; but for the method, all variants have the base's settings."""
    study, title = studies.load(str(ROOT / "experiments" / f"{name}.py"))
    shared, runs = planned(study, base, tmp_path)
    assert title and {run.variant for run in runs if run.compared} == set(study.variants)
    for planned_run in runs:
        epochs = shared.config.pretrain.epochs or shared.config.epochs
        assert planned_run.config.epochs == (
            shared.config.epochs if planned_run.compared else epochs
        )
        for key in ("batch_size", "data", "optimizer", "mesh", "pretrain"):
            assert planned_run.config[key] == shared.config[key], (planned_run.variant, key)
        own = {p.model: p.optimizer for p in shared.config.peers}
        for network in planned_run.config.peers:
            if network.model in own:
                assert network.optimizer == own[network.model]
    for key, numbers in study.published.items():
        assert set(numbers) <= set(study.variants), key


def test_published_numbers_belong_to_a_base():
    keys, published = set(), set()
    for name, base in [*CASES, ("dcm", "configs/cifar100.py:dcm:wrn_28_10,mobilenet")]:
        study, _ = studies.load(str(ROOT / "experiments" / f"{name}.py"))
        keys.add(studies.read_base(study, base, (), Path()).key)
        published |= study.published.keys()
    assert len(published) == 8 and published <= keys


def test_a_teacher_is_trained_once_for_all_who_need_it(tmp_path):
    study = Study(
        ("configs/digits.py",),
        "kd",
        {"alone": "ind:{student}", "T=1": "kd --config.method.temperature=1", "T=3": "kd"},
        "alone",
    )
    _, runs = planned(study, "configs/digits.py", tmp_path, ("--config.epochs=3",), seeds=2)
    assert [run.name for run in runs] == [
        f"{name} seed {seed}"
        for seed in range(2)
        for name in ("alone", "teacher-resnet14", "T=1", "T=3")
    ]
    epochs = {"teacher-resnet14": 10}  # of pretrain.epochs
    assert all(run.config.epochs == epochs.get(run.variant, 3) for run in runs)
    assert all(run.config.seed == run.seed for run in runs)
    assert [run.teacher for run in runs[:4]] == [None, None, runs[1], runs[1]]
    assert runs[2].config.peers[0].init_from == str(runs[1].workdir / "networks" / "0")


def test_devices_are_shared_out():
    one_each = jobs.environments(2, ["0", "1"])
    assert one_each == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert jobs.environments(1, ["0", "1"]) == [{"CUDA_VISIBLE_DEVICES": "0,1"}]
    crowd = jobs.environments(3, ["0", "1"])
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables in crowd] == ["0", "1", "0"]
    assert crowd[0]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert jobs.environments(2, []) == [{}, {}]


def test_a_run_can_ask_for_more_devices_than_the_study_has(tmp_path):
    study = Study(("configs/digits.py",), "ind", {"alone": "ind"}, "alone")
    _, (planned_run,) = planned(study, "configs/digits.py", tmp_path, ("--config.mesh.data=4",))
    assert planned_run.config.mesh.data == 4


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program = tmp_path / "nvidia-smi"
    for output, status, expected in (("0\\n1", 0, ["0", "1"]), ("no driver here", 9, [])):
        program.write_text(f"#!/bin/sh\nprintf '{output}\n'\nexit {status}\n")
        program.chmod(0o755)
        assert jobs.gpus() == expected


def finished_run(workdir, networks, method, top1, ensemble, promotions=None):
    """A work directory as a finished run of two epochs leaves it, as far as studies read it."""
    config = default_config(method)
    config.epochs, config.peers = 2, tuple(map(peer, networks))
    for i in range(len(networks)):
        (workdir / "networks" / str(i)).mkdir(parents=True)
        (workdir / "networks" / str(i) / "network.json").touch()
    (workdir / "config.json").write_text(to_json(config))
    train = {"promotions_total": promotions} if promotions else {}
    test = {"top1": top1, "ensemble": {"top1": ensemble}}
    record = {"step": 8, "seconds": 1.5, "train": train, "test": test}
    lines = [json.dumps(record | {"epoch": epoch, "step": 4 * epoch}) for epoch in (1, 2)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return studies.Run(workdir.parent.name, int(workdir.name[4:]), workdir, (), config)


def test_tables_and_csv_by_hand(tmp_path):
    """Means of the kept students (the pivot and larger networks do not count); p by its formula."""
    study = Study(
        ("configs/digits.py",),
        "ind",
        {"alone": "ind", "orc": "orc", "missing": "dml"},
        "alone",
        published={"digits resnet8": {"orc": 91.5}},
    )
    pair, group = ["resnet14", "resnet8"], ["resnet14", "resnet8", "resnet8"]
    runs = [
        finished_run(tmp_path / "alone" / f"seed{i}", pair, "ind", [99.0, x], 90.0)
        for i, x in enumerate((88.0, 90.0, 89.0))
    ]
    runs += [
        finished_run(tmp_path / "orc" / f"seed{i}", group, "orc", [99, x, x + 1], 91 + i, [0, 6, 2])
        for i, x in enumerate((89.5, 90.5, 91.5))
    ]
    assert all(map(jobs.is_finished, runs))
    found = [results.result(run, "resnet8") for run in runs]
    summaries = results.summarise(study, found)
    assert list(summaries) == ["alone", "orc"]
    assert summaries["alone"].measure == pytest.approx((89.0, 1.0))
    assert summaries["orc"].measure == pytest.approx((91.0, 1.0))
    # The differences are 2, 1 and 3: t = 2 / (1 / √3) = 2√3 with two degrees of freedom, where
    # p = 1 − t / √(2 + t²).
    assert summaries["orc"].p == pytest.approx(1 - np.sqrt(12 / 14))
    assert np.isnan(summaries["alone"].p)

    rows = tables.rows(summaries, study.published["digits resnet8"])
    head = tables.header(study.published["digits resnet8"])
    text = tables.markdown("T", head, rows, "below")
    assert "| variant | seeds | top-1 % | p | ensemble % | published % |" in text
    assert "| alone | 3 | 89.00 ± 1.00 | – | 90.00 ± 0.00 |  |" in text
    assert "| orc | 3 | **91.00 ± 1.00** | 0.074 | **92.00 ± 1.00** | 91.50 |" in text
    assert "published" not in tables.markdown(
        "T", tables.header({}), tables.rows(summaries, {}), ""
    )
    tex = tables.latex("T", head, rows, r"100 % {a}\b")
    row = r"orc & 3 & \textbf{91.00 $\pm$ 1.00} & 0.074 & \textbf{92.00 $\pm$ 1.00} & 91.50 \\"
    assert row in tex and r"100 \% \{a\}\textbackslash{}b" in tex

    results.write_csv(tmp_path / "results.csv", found)
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(results.COLUMNS)
    expected = ["orc", "0", "99.00 89.50 90.50", "90.0000", "91.0000", "0.0000 0.7500 0.2500"]
    assert [*lines[3].values()][:6] == expected
    assert lines[3]["seconds"] == "3.0" and lines[3]["workdir"] == str(tmp_path / "orc" / "seed0")


@pytest.mark.parametrize("name", ["orc_components", "dcm", "switokd", "switokd_three"])
def test_published_numbers_stand_beside_the_published_settings_alone(name):
    """Their bases are in the studies; an override that changes results takes them away."""
    study, _ = studies.load(f"experiments/{name}.py")
    found = set()
    for file in study.bases:
        base = studies.read_base(study, file, ["--config.data.dir=elsewhere"], Path("out"))
        known = studies.published(study, base)
        found |= {base.key} if known else set()
        assert study.not_public in tables.notes(study, "x", known) or not known
        assert known.keys() <= study.variants.keys()
        changed = studies.read_base(study, file, ["--config.epochs=3"], Path("out"))
        assert studies.published(study, changed) == {}
    pair = studies.read_base(
        study, "configs/cifar100.py:dcm:wrn_28_10,mobilenet", [], Path("out")
    ).key
    assert found | {pair} == study.published.keys() | {pair}


def test_equal_results_and_single_seeds_have_no_p():
    study = Study(("configs/digits.py",), "ind", {"a": "ind", "b": "ind"}, "a")

    def result(variant, seed, measure):
        return results.Result(variant, seed, [measure], measure, measure, [], 1.0, Path())

    same = [
        result(name, seed, 18.06 + 1.25 * (name == "b") + seed) for name in "ab" for seed in (0, 1)
    ]
    assert np.isnan(results.summarise(study, same)["b"].p)
    summaries = results.summarise(study, same[:3])
    # The second variant lacks a seed, so its mean is not the best, although it is the highest.
    assert [row[2].best for row in tables.rows(summaries, {})] == [True, False]
    summary = summaries["b"]
    assert np.isnan(summary.p) and np.isnan(summary.measure[1])
    assert tables.rows({"b": summary}, {})[0][2].text == "19.31"


TINY = '''
"""A tiny study."""
from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py",),
    preset="ind:resnet8",
    variants={
        "alone": "ind:{student}",
        "broken": "ind:{student} --config.data.train_images=5000",
        "gentle": "ind:{student} --config.optimizer.learning_rate=0.01",
    },
    baseline="alone",
    seeds=1,
)
'''


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY.lstrip())
    return str(path)


def test_a_study_from_the_command_line(tiny, tmp_path):
    """A variant that fails takes no other along; the second call trains nothing anew."""
    out = tmp_path / "out"
    command = ("-m", "experiments.run", tiny, f"--out={out}", "--jobs=2", *FAST)
    first = run_command(*command, check=False, env=QUICK)
    assert first.returncode == 1 and "Traceback" not in first.stdout + first.stderr
    errors = first.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: broken seed 0: ")
    assert "train_images is 5000, allowed" in errors[0]
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["variant"], line["seed"]) for line in lines] == [("alone", "0"), ("gentle", "0")]
    for line in lines:
        top1 = [float(value) for value in line["top1"].split()]
        assert [float(line["measure"])] == pytest.approx(top1, abs=0.01)
        assert f"| {line['variant']} | 1 | " in (out / "table.md").read_text()
    assert (out / "table.md").read_text() in first.stdout
    assert (out / "table.tex").exists()
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")

    written = [(out / name).read_text() for name in ("results.csv", "table.md")]
    second = run_command(*command, "--only=gentle", env=QUICK)
    assert "1 runs, 1 finished" in second.stdout and "seed 0" not in second.stdout
    assert [(out / name).read_text() for name in ("results.csv", "table.md")] == written
    with pytest.raises(
        UserError, match=r"variant gentle: .* another config \(batch_size: 64 → 32\)"
    ):
        run.prepare(tiny, out=out, only=["gentle"], overrides=[*FAST, "--config.batch_size=32"])


def test_a_signal_stops_the_runs_with_a_checkpoint_and_they_go_on(tiny, tmp_path):
    """Ctrl-C; then a terminal that is closed."""
    out = tmp_path / "out"
    args = (tiny, f"--out={out}", "--only=alone", "--seeds=1", "--config.epochs=5000", FAST[1])
    command = [sys.executable, "-m", "experiments.run", *args]
    pipe, log = subprocess.PIPE, out / "alone" / "seed0.log"
    for times, number in ((1, signal.SIGINT), (2, signal.SIGHUP)):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=os.environ | QUICK
        )
        while not log.exists() or log.read_text().count("first step after") < times:
            assert process.poll() is None
            time.sleep(0.1)
        if number == signal.SIGHUP:
            process.stdout.close()  # as a terminal does
            process.stderr.close()
        process.send_signal(number)
        assert process.wait(timeout=TOO_LONG) != 0
        if number == signal.SIGINT:
            assert "the same command goes on from here" in process.stderr.read()
        assert log.read_text().count("stopped by SIGTERM at step") == times
    assert log.read_text().count("resumed at step") == 1


@pytest.mark.parametrize(
    "args, message",
    [
        ({"base": "configs/digit.py"}, "no such config file: configs/digit.py"),
        ({"base": "configs/digits.py:in"}, "unknown preset of configs/digits.py 'in'"),
        ({"only": ["alone", "par"]}, "unknown variant of .* 'par': allowed: alone"),
        ({"overrides": ["--config.lr=3"]}, "unknown key of config 'lr'"),
        ({"overrides": ["--config.method.T=3"]}, "unknown key of config.method 'T'"),
        ({"overrides": ["--config.epochs=many"]}, "epochs=many: invalid literal"),
        ({"overrides": ["--config.seed=3"]}, "--config.seed=3: a study's seeds are 0 to N − 1"),
        ({"overrides": ["--config.epochs=0"]}, "variant alone: epochs is 0, allowed: 1 or more"),
    ],
)
def test_mistakes_are_found_before_anything_starts(args, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        run.prepare(tiny, out=tmp_path / "out", **args)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(UserError, match="there is no study"):
        studies.load(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="it has no STUDY"):
        studies.load(run.__file__)
    path = tmp_path / "named.py"
    path.write_text(TINY.lstrip().replace('"gentle"', '"a b"'))
    with pytest.raises(UserError, match="'a b', which names a folder"):
        studies.load(str(path))


@pytest.mark.parametrize(
    "variant, message",
    [
        ("dml:{networks},{pupil}", "variant odd: .* is no preset with overrides: 'pupil'"),
        ("dml:{networks} lr=3", "variant odd: unexpected argument 'lr=3'"),
        ("ind:resnet14", "variant odd: it keeps no resnet8"),
        ("dcn", "variant odd: unknown preset of configs/digits.py 'dcn': did you mean 'dcm'"),
    ],
)
def test_variants_that_make_no_sense(variant, message, tmp_path):
    study = Study(("configs/digits.py",), "ind", {"odd": variant}, "odd")
    with pytest.raises(UserError, match=message):
        planned(study, "configs/digits.py", tmp_path)
