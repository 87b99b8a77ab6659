"""Leases: one holder at a time, whoever was killed, and on whatever machine."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from experiments.sweep import leases


def test_a_lease_is_held_by_one_at_a_time(tmp_path):
    with leases.held(tmp_path, "block") as still:
        assert still()
        with leases.held(tmp_path, "other") as other:
            assert other()
        with ThreadPoolExecutor() as pool:  # of this process
            assert pool.submit(attempt, tmp_path).result() is False
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            assert pool.submit(attempt, tmp_path).result() is False
        assert still()
    assert not any(tmp_path.iterdir())
    assert attempt(tmp_path)


def attempt(folder) -> bool:
    with leases.held(folder, "block") as still:
        return still is not None


def test_many_who_want_a_lease_at_once(tmp_path):
    inside, most = [], []

    def work(number):
        with leases.held(tmp_path, "block") as still:
            if still is None:
                return 0
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)
            return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(16))) >= 1
    assert max(most) == 1


@pytest.mark.parametrize(
    "mark, age, free",
    [
        ({"pid": "dead"}, 0, True),  # killed
        ({"pid": "alive"}, 0, False),
        ({"pid": "alive"}, 1000, False),  # asleep, or stopped by a debugger
        ({"pid": "dead", "host": "elsewhere"}, 0, False),  # a number of another machine
        ({"pid": "alive", "host": "elsewhere"}, 30, False),
        ({"pid": "alive", "host": "elsewhere"}, 90, True),
        (None, 0, False),  # just being written
        (None, 90, True),  # killed before it was
    ],
)
def test_whose_lease_may_be_taken_over(mark, age, free, tmp_path, monkeypatch):
    """Ages are in seconds, of a clock that stands still."""
    file, now = tmp_path / "block", time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    if mark is not None:
        pid = {"dead": gone.pid, "alive": os.getppid()}[mark["pid"]]
        host = mark.get("host", socket.gethostname())
        mark = json.dumps({"host": host, "pid": pid, "token": "theirs"})
    file.write_text(mark or "")
    os.utime(file, (now - age,) * 2)
    assert attempt(tmp_path) == free
    assert file.exists() != free


def test_one_who_has_lost_a_lease_knows_and_leaves_it(tmp_path):
    with leases.held(tmp_path, "block") as still:
        theirs = json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"})
        (tmp_path / "block").write_text(theirs)
        assert not still()
    assert (tmp_path / "block").read_text() == theirs


def test_of_two_who_find_a_lease_abandoned_one_takes_it(tmp_path, monkeypatch):
    """The other must not take it from who was faster."""
    file, theirs = tmp_path / "block", {"host": socket.gethostname(), "token": "theirs"}
    file.write_text(json.dumps({**theirs, "pid": 2**22 + 1}))  # more than there are
    left_behind = leases._left_behind

    def slow(file):
        found = left_behind(file)
        file.write_text(json.dumps({**theirs, "pid": os.getppid()}))
        return found

    monkeypatch.setattr(leases, "_left_behind", slow)
    assert not attempt(tmp_path)
    assert json.loads(file.read_text())["token"] == "theirs"
