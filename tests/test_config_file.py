"""Config files and overrides that are wrong: one line that names the file, line or setting."""

import sys

import pytest
from conftest import run_here

HEAD = "from orc_jax import default_config, peer\n\ndef get_config():\n"
GOOD = f'{HEAD}  c = default_config("dml")\n  c.peers = (peer("resnet8"), peer("resnet8"))\n'
FILES = {
    "syntax": ("def get_config(:\n", ", line 1: invalid syntax"),
    "indent": (f"{GOOD}   return c\n", ", line 6: unexpected indent"),
    "binary": ("\0\1binary", ", line 1: source code string cannot contain null bytes"),
    "name": (f"{HEAD}  return nothing\n", ", line 4: NameError: name 'nothing' is not defined"),
    "import": ("import no_such_package\n", ", line 1: ModuleNotFoundError: No module named"),
    "no function": ("x = 1\n", " has no function get_config"),
    "not a config": ("def get_config():\n  return 5\n", ": get_config returns 5, allowed: a Conf"),
    "type": (f'{GOOD}  c.epochs = "ten"\n  return c\n', ", line 6: TypeError: Could not override"),
}
SETTINGS = {
    "no settings": (
        "c.unlock(); c.optimizer = None",
        "config.optimizer is None, allowed: settings",
    ),
    "no method": ("c.unlock(); del c.method; c.method = 3", "config.method is 3, allowed: sett"),
    "text": ("c.unlock(); del c.epochs; c.epochs = 'x'", "config.epochs is 'x', allowed: int"),
    "no networks": ("c.peers = (1, 2)", "config.peers is (1, 2), allowed: a tuple of networks"),
    "a share": (
        "c.unlock(); del c.data.flip; c.data.flip = 2",
        "config.data.flip is 2, allowed: bool",
    ),
}


def error_of(tmp_path, config, *overrides):
    sys.modules.pop("config_config", None)  # a module that ml_collections would load into
    result = run_here("train", f"--config={config}", f"--workdir={tmp_path}/run", *overrides)
    assert result.returncode == 1 and not (tmp_path / "run").exists()
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# What is no config has no settings to override.
OVERRIDDEN = [(kind, ("--config.epochs=3",)) for kind in FILES if kind != "not a config"]


@pytest.mark.parametrize("kind, overrides", [*((kind, ()) for kind in FILES), *OVERRIDDEN])
def test_a_config_file_that_is_wrong(tmp_path, kind, overrides):
    text, message = FILES[kind]
    file = tmp_path / f"{kind}.py"
    file.write_text(text)
    assert error_of(tmp_path, file, *overrides).startswith(f"{file}{message}")


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_setting_of_a_wrong_type(tmp_path, kind):
    code, message = SETTINGS[kind]
    file = tmp_path / "config.py"
    file.write_text(f"{GOOD}  {code}\n  return c\n")
    assert error_of(tmp_path, file).startswith(message)


def test_what_is_no_config_file(tmp_path):
    assert error_of(tmp_path, "README.md").startswith("README.md, line ")
    assert error_of(tmp_path, tmp_path) == f"no such config file: {tmp_path}"
    assert error_of(tmp_path, "").startswith("no such config file")


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.=5", "'--config.=5' is not a setting: allowed: --config.KEY=VALUE"),
        ("--config..=5", "'--config..=5' is not a setting: allowed: --config.KEY=VALUE"),
        ("--config.a b=5", "'--config.a b=5' is not a setting: allowed: --config.KEY=VALUE"),
        (
            "--config.peers.0.model=x",
            "'--config.peers.0.model=x' is not a setting: did you mean "
            "--config.peers[0].model? allowed: ",
        ),
        (
            "--config.optimizer.decay_epochs[0]=5",
            "config.optimizer.decay_epochs is given as a whole",
        ),
        (
            "--config.optimizer.decay_epochs=(1e999,)",
            "optimizer.decay_epochs is [inf], allowed: fin",
        ),
        ("--config.optimizer.warmup_epochs=inf", "optimizer.warmup_epochs is inf, allowed: finite"),
        ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate is nan, allowed: finite"),
        (f"--config.eval_batch_size={10**20}", f"eval_batch_size is {10**20}, allowed: at most"),
        ("--config.optimizer.momentum=2", "peers[0].optimizer.momentum is 2.0, allowed: from 0 to"),
        ("--config.checkpoint_minutes=-1", "checkpoint_minutes is -1.0, allowed: 0 or more"),
        ("--config.data=5", "flag --config.data=5: Failed to parse '5' as a ConfigDict"),
    ],
)
def test_an_override_that_is_wrong(tmp_path, override, message):
    assert error_of(tmp_path, "configs/digits.py:dml", override).startswith(message)
