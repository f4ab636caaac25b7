"""The lock of a work directory; whose directory it is, test_train and test_commands check."""

import errno

import jax
import pytest

from orc_jax.errors import UserError
from orc_jax.runtime.workdir import Lock


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
