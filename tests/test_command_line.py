"""How the commands are listed, described and chosen; what they do is tested elsewhere."""

from importlib import import_module

import pytest
from conftest import run_command, run_here, tiny_config, tiny_data

import orc_jax
from orc_jax import config as configs
from orc_jax.commands import COMMANDS

EXPECTED = {
    "train": ("config", "workdir", "[no]distributed", "[no]extend"),
    "evaluate": ("workdir", "checkpoint", "data_dir"),
    "predict": ("format", "out", "batch_size"),
    "export": ("workdir", "out", "peer", "checkpoint", "[no]quantize", "data_dir"),
    "report": ("out", "checkpoint", "data_dir"),
    "gradcam": ("workdir", "network", "images", "classes", "out", "checkpoint", "data_dir"),
    "models": ("[no]latency",),
    "import-torch": ("model", "num_classes", "out", "channels", "mean", "std", "size"),
}


def call(*args):
    """What `python -m orc_jax ARGS` prints."""
    result = run_here(*args)
    assert result.returncode == 0 and result.stderr == ""
    return result.stdout


def test_all_commands_are_listed():
    page = call()
    assert page == call("--help") == call("-h") == call("help")
    for name, summary in COMMANDS.items():
        (line,) = [line for line in page.splitlines() if line.split()[:1] == [name]]
        assert line.endswith(summary)


def test_every_command_has_an_expected_page():
    assert COMMANDS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_help_page_of_a_command(name):
    page = call(name, "--help")
    lines = page.splitlines()
    assert lines[0].startswith(f"usage: python -m orc_jax {name}")
    assert lines[2] == COMMANDS[name]
    listed = [line.split()[0] for line in lines if line.startswith("  --")]
    assert listed == [f"--{flag}" for flag in EXPECTED[name]]
    assert lines[-2] == "example:"
    assert lines[-1].startswith(f"  python -m orc_jax {name} ")


def test_defaults_and_required_flags_are_named():
    page = call("import-torch", "--help")
    assert page.startswith(
        "usage: python -m orc_jax import-torch FILE --model=… --num_classes=… --out=… "
        "[--FLAG=VALUE …]\n"
    )
    lines = {line.split()[0]: line for line in page.splitlines() if line.startswith("  --")}
    assert lines["--model"].endswith("(required)")
    assert lines["--channels"].endswith("(default: 3)")


def test_help_pages_do_not_run_the_command(monkeypatch):
    command = import_module("orc_jax.commands.models")
    monkeypatch.setattr(command, "cost", None)
    call("models", "--latency", "--help")


def test_an_unknown_command_gets_one_line():
    result = run_here("trian")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: unknown command 'trian': did you mean 'train'? ")
    assert result.stderr.count("\n") == 1


def test_a_help_page_in_a_process_of_its_own():
    result = run_command("-m", "orc_jax", "train", "--help")
    assert "--workdir" in result.stdout and result.stderr == ""


def test_the_home_directory_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run_here("report", "--out=~/report.html", str(tmp_path / "no-run"))
    assert result.returncode == 1 and f"{tmp_path}/no-run" in result.stderr
    result = run_here("evaluate", "--workdir=~/no-run")
    assert result.returncode == 1 and f"{tmp_path}/no-run" in result.stderr
    config = tiny_config(("pixels",), "ind")
    config.data.dir, config.data.cache = "~/data", "~"
    config.peers[0].init_from = "~/teacher:1"
    found = configs.resolved(config)
    assert (found.data.dir, found.data.cache) == (f"{tmp_path}/data", str(tmp_path))
    assert found.peers[0].init_from == f"{tmp_path}/teacher:1"
    assert config.data.dir == "~/data"
    config.peers[0].init_from = None
    orc_jax.train(config, "~/run", tiny_data(train=80))
    assert (tmp_path / "run" / "metrics.jsonl").exists()
