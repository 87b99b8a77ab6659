"""Leases: one holder at a time, whoever was killed, and on whatever machine."""

import errno
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from invertjax.cli import leases


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


LINUX = pathlib.Path("/proc/self/stat").exists()  # tells when a process started


def mark_of(holder: str) -> dict:
    """What a process would write: "alive" or "dead" ones, here or elsewhere, and one
    whose number a living process has got."""
    pid, host = os.getppid(), leases._machine()
    started = leases._started(pid)
    if holder == "dead":
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        pid, started = gone.pid, "1"
    if holder == "reused":
        started = "1"
    if holder == "elsewhere":
        host = "elsewhere"
    return {"host": host, "pid": pid, "started": started, "token": "theirs"}


def left(folder, content: bytes | str, age: float, now: float) -> pathlib.Path:
    file = folder / "block"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(file, (now - age,) * 2)
    return file


@pytest.fixture
def now(monkeypatch):
    """Seconds, of a clock that stands still."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    return now


@pytest.mark.parametrize(
    "holder, age, free",
    [
        ("dead", 0, True),  # killed
        ("alive", 0, False),
        ("alive", 1000, not LINUX),  # asleep, or stopped by a debugger
        ("reused", 0, LINUX),  # killed, and its number is another's
        ("reused", 90, True),
        ("elsewhere", 30, False),
        ("elsewhere", 90, True),
        ("elsewhere", -1e9, True),  # of a clock that was wrong
    ],
)
def test_whose_lease_may_be_taken_over(holder, age, free, tmp_path, now):
    file = left(tmp_path, json.dumps(mark_of(holder)), age, now)
    assert leases.busy(tmp_path) != free
    assert attempt(tmp_path) == free
    assert file.exists() != free


NO_MARKS = {
    "empty": b"",
    "torn": b'{"host": "',
    "not text": b"\xff\xfe",
    "a list": b"[]",
    "words": b'"mine"',
    "a number": b"7",
    "nested": b"[" * 900,
    "long": b" " * 10_000_000 + b"{}",
    "foreign": b'{"host": 3, "pid": [], "started": {}, "token": null}',
}
PIDS = [0, -1, True, 2.5, "1", None, [1], 2**80]


@pytest.mark.parametrize(
    "content",
    [
        *NO_MARKS.values(),
        *[json.dumps({**mark_of("alive"), "pid": pid}) for pid in PIDS[:-1]],
    ],
    ids=[*NO_MARKS, *map(str, PIDS[:-1])],
)
def test_a_lease_that_says_nothing_is_judged_by_its_age(content, tmp_path, now):
    left(tmp_path, content, 30, now)
    assert not attempt(tmp_path)
    left(tmp_path, content, 90, now)
    assert attempt(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_number_that_no_process_can_have(tmp_path, now):
    left(tmp_path, json.dumps({**mark_of("alive"), "pid": PIDS[-1]}), 0, now)
    assert attempt(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    kind, tmp_path, monkeypatch
):
    target, folder = tmp_path / "target", tmp_path / "leases"
    folder.mkdir()
    if kind == "link":
        target.write_text(json.dumps(mark_of("alive")))
    if "link" in kind:
        (folder / "block").symlink_to(target)
    else:
        os.mkfifo(folder / "block")
    before = target.read_bytes() if target.exists() else None
    assert not attempt(folder)
    later = time.time() + 90
    monkeypatch.setattr(time, "time", lambda: later)
    assert attempt(folder) and not any(folder.iterdir())
    assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no full disk")
def test_a_full_disk_leaves_no_lease(tmp_path, monkeypatch):
    """Else the next to come waits for a minute."""
    real = pathlib.Path.open

    def full(path, mode="r", *args, **options):
        if mode != "xb":
            return real(path, mode, *args, **options)
        real(path, mode).close()
        return open("/dev/full", "wb")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", full)
        with pytest.raises(OSError) as error:
            attempt(tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert not any(tmp_path.iterdir()) and not leases._HELD
    assert attempt(tmp_path)


def test_only_ones_own_lease_is_touched(tmp_path, monkeypatch):
    """Else one that was lost would never be free again."""
    monkeypatch.setattr(leases, "TOUCHED", 0.01)
    touched, utime = [], os.utime

    def touch(file, *args):
        touched.append(file)
        utime(file, *args)

    monkeypatch.setattr(os, "utime", touch)
    with leases.held(tmp_path, "block"):
        while not touched:
            time.sleep(0.01)
        (tmp_path / "block").write_text(json.dumps(mark_of("elsewhere")))
        time.sleep(0.1)
        del touched[:]
        time.sleep(0.1)
    assert not touched


def test_one_who_has_lost_a_lease_knows_and_leaves_it(tmp_path):
    with leases.held(tmp_path, "block") as still:
        theirs = json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"})
        (tmp_path / "block").write_text(theirs)
        assert not still()
    assert (tmp_path / "block").read_text() == theirs


def test_of_two_who_find_a_lease_abandoned_one_takes_it(tmp_path, monkeypatch):
    """The other must not take it from who was faster."""
    file, theirs = tmp_path / "block", mark_of("alive")
    file.write_text(json.dumps(mark_of("dead")))
    left_behind = leases._left_behind

    def slow(file):
        found = left_behind(file)
        file.write_text(json.dumps(theirs))
        return found

    monkeypatch.setattr(leases, "_left_behind", slow)
    assert not attempt(tmp_path)
    assert json.loads(file.read_text())["token"] == "theirs"


def test_to_ask_whether_a_process_lives_does_it_no_harm():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as other:
        mark = {
            "pid": other.pid,
            "host": leases._machine(),
            "started": leases._started(other.pid),
        }
        assert leases._alive(mark)
        other.communicate(b"\n")
    assert other.returncode == 0  # it ended by itself, and not by a signal
