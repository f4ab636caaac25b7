"""The lock of a work directory; whose directory it is, test_train and test_commands check."""

import errno
import tarfile

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny_config, tiny_data

import orc_jax
from orc_jax.errors import UserError
from orc_jax.runtime import metrics
from orc_jax.runtime.workdir import Lock
from orc_jax.trained.export import export
from orc_jax.trained.import_torch import import_torch


def test_a_second_lock_is_refused_until_the_first_is_free(tmp_path):
    workdir = tmp_path / "runs" / "first"
    with Lock(workdir):
        with pytest.raises(UserError, match=f"^another process is training in {workdir}$"):
            Lock(workdir).__enter__()
        with Lock(tmp_path / "runs" / "second"):
            pass
    with Lock(workdir):
        pass
    assert (workdir / ".lock").exists()


def test_the_lock_is_the_main_processs(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Lock(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_not_stop_a_run(tmp_path, monkeypatch, recwarn, code):
    fcntl = pytest.importorskip("fcntl")

    def flock(file, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lock(tmp_path):
        assert (tmp_path / ".lock").read_bytes() == b""  # no mark that outlives this process
        with Lock(tmp_path):
            pass
    assert not recwarn.list


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"^cannot write to {workdir}: "):
            Lock(workdir).__enter__()


@pytest.mark.parametrize("name", ["exp[1]", "a*", "what?"])
def test_a_path_that_orbax_cannot_read_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"directory is .*, allowed: a path without [*?\[]"):
        orc_jax.train(tiny_config(), tmp_path / name / "run", tiny_data())
    with pytest.raises(UserError, match=r"--out is .*, allowed: a path without"):
        import_torch(tmp_path / "x.pth", "resnet8", 10, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("schema", [1])
def test_a_run_of_an_earlier_version_opens_in_every_command(tmp_path, schema):
    with tarfile.open(ROOT / "tests" / "golden" / f"schema{schema}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    workdir, data = tmp_path / f"schema{schema}", tiny_data()
    logged = metrics.read(workdir)[-1]["test"]
    found = orc_jax.evaluate(workdir, data=data)
    np.testing.assert_allclose(found["top1"], logged["top1"], atol=1e-3)
    np.testing.assert_allclose(found["loss"], logged["loss"], atol=1e-5)
    for place in (workdir, workdir / "networks" / "1"):
        assert orc_jax.load(place).predict(data[2]).shape == (21, 5)
    about = export(workdir, tmp_path / "export", "ensemble")
    assert about["config"]["data"]["test_share"] == 0.1
    # The same call finds it finished.
    config = tiny_config(("pixels", "pixels"), "dml")
    result = orc_jax.train(config, workdir, data)
    assert result.finished and result.metrics["test"] == logged
