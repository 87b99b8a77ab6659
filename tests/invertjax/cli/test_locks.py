"""A folder for one process alone, by the system's lock, or by a lease without one."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from invertjax.cli import locks

HOLDS = """
import pathlib, signal, sys
from invertjax.cli import locks

if sys.argv[2] == "lease":
    locks.fcntl = None
with locks.alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture(params=["lock", "lease"])
def kind(request, monkeypatch):
    if request.param == "lease":
        monkeypatch.setattr(locks, "fcntl", None)
    return request.param


def free(folder: pathlib.Path) -> bool:
    try:
        with locks.alone(folder):
            return True
    except locks.Taken:
        return False


def test_a_killed_process_leaves_no_lasting_lock(kind, tmp_path):
    code = [sys.executable, "-c", HOLDS, str(tmp_path), kind]
    root = pathlib.Path(locks.__file__).parents[2]
    with subprocess.Popen(code, cwd=root, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert not free(tmp_path)
        other.send_signal(signal.SIGKILL)
    assert free(tmp_path) and not any(tmp_path.iterdir())


def test_who_has_it_has_it_alone_and_leaves_nothing(kind, tmp_path):
    with locks.alone(tmp_path):
        assert not free(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
    assert not any(tmp_path.iterdir())


def test_who_opened_a_lock_that_was_removed_meanwhile_takes_the_new_one(
    tmp_path, monkeypatch
):
    """The one before removed it, and the next one has made another."""
    file, opened, real = tmp_path / locks.FILE, [], os.open

    def replaced(path, *args):
        descriptor = real(path, *args)
        if not opened:
            file.unlink()
            file.write_text("")
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", replaced)
    with locks.alone(tmp_path):
        assert len(opened) == 2
        assert os.path.samestat(file.stat(), os.fstat(opened[-1]))


def test_a_file_system_without_locks_has_leases(tmp_path, monkeypatch):
    def refuses(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuses)
    with locks.alone(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [locks.LEASE]
        assert not free(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_planted_link_is_not_followed(tmp_path):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    (folder / locks.FILE).symlink_to(victim)
    with pytest.raises(OSError):
        free(folder)
    assert not victim.exists()


def test_a_lock_file_may_be_gone_where_there_are_no_locks(tmp_path, monkeypatch):
    class Without:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(descriptor, flags):
            (tmp_path / locks.FILE).unlink()  # by another who found that out
            raise OSError("no locks here")

    monkeypatch.setattr(locks, "fcntl", Without)
    with locks.alone(tmp_path):
        assert list(tmp_path.iterdir())  # a lease
    assert not list(tmp_path.iterdir())
