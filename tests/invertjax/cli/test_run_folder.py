"""Files that are written whole or not at all, whatever ends the process."""

import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import threading

import pytest

from invertjax.cli import run_folder


class Full(Exception):
    """What a disk says that has no more room."""


def names(folder: pathlib.Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_file_is_there_with_all_it_holds_or_as_it_was(tmp_path):
    path = tmp_path / "part-0.parquet"
    for content in (b"first", b"\x00second\xff"):
        run_folder.write(path, content)
        assert path.read_bytes() == content and names(tmp_path) == {path.name}


@pytest.mark.parametrize("before", [b"as it was", None])
@pytest.mark.parametrize("error", [Full, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_file_is_as_it_was(error, before, tmp_path):
    path = tmp_path / "state.npz"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), run_folder.replacing(path) as file:
        file.write(b"half")
        file.flush()
        raise error
    assert names(tmp_path) == ({path.name} if before else set())
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_after_an_error_at_the_end_the_file_is_as_it_was(name, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_bytes(b"as it was")

    def fails(*args):
        raise Full

    with monkeypatch.context() as patch, pytest.raises(Full):
        patch.setattr(os, name, fails)
        run_folder.write(path, b"new")
    assert path.read_bytes() == b"as it was" and names(tmp_path) == {path.name}


def test_readers_leave_half_a_file_out(tmp_path):
    """pandas and pyarrow skip names that start with "_"; a sweep reads "part-*"."""
    with run_folder.replacing(tmp_path / "part-0.parquet") as file:
        (beside,) = names(tmp_path)
        assert re.match("[_.]", beside) and not beside.startswith("part-")
        assert not list(tmp_path.glob("[!_]*"))  # what a sweep calls other files
        file.write(b"whole")
    assert names(tmp_path) == {"part-0.parquet"}


def test_others_may_read_what_one_has_written(tmp_path):
    before = os.umask(0o022)
    try:
        run_folder.write(tmp_path / "config.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o644


def test_several_may_write_one_file_at_once(tmp_path):
    """It is what one of them wrote at every moment, and none disturbs another."""
    path, seen = tmp_path / "original.png", set()
    contents = [bytes([i]) * 100_000 for i in range(4)]
    run_folder.write(path, contents[0])

    def writes(content):
        for _ in range(10):
            run_folder.write(path, content)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=writes, args=(c,)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(contents) and names(tmp_path) == {path.name}


KILLED = """
import os, pathlib, signal, sys
from invertjax.cli import run_folder

with run_folder.replacing(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_leaves_is_gone_when_the_run_goes_on(tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"as it was")
    code = [sys.executable, "-c", KILLED, path]
    root = pathlib.Path(run_folder.__file__).parents[2]
    assert subprocess.run(code, cwd=root).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"as it was" and len(names(tmp_path)) == 2
    with run_folder.open_(str(tmp_path), overwrite=False, resume=True):
        assert names(tmp_path) >= {path.name}
    assert names(tmp_path) == {path.name}


def test_a_folder_of_other_files_is_left_as_it_is(tmp_path):
    """Only a run stands in the way of a run; --overwrite replaces its files alone."""
    (tmp_path / "notes.txt").write_text("mine")
    run_folder.check(str(tmp_path), {}, overwrite=False, resume=False)
    for name in run_folder.FILES:
        (tmp_path / name).write_text("old")
    with run_folder.open_(str(tmp_path), overwrite=False, resume=True):
        pass
    assert names(tmp_path) == {*run_folder.FILES, "notes.txt"}
    with run_folder.open_(str(tmp_path), overwrite=True, resume=False):
        pass
    assert names(tmp_path) == {"notes.txt"}


def test_a_folder_is_one_process_s_as_long_as_it_runs(tmp_path):
    """The second is refused before it removes anything; so is one that has looked, by
    `check`, before the first began, and comes when that has ended."""
    path = str(tmp_path / "run")
    for overwrite, resume in ((False, False), (True, False), (False, True)):
        options = dict(overwrite=overwrite, resume=resume)
        with run_folder.open_(path, **{**options, "overwrite": not resume}) as first:
            (first.path / "config.json").write_text("mine")
            with (
                pytest.raises(ValueError, match="another process is at work") as error,
                run_folder.open_(path, **options),
            ):
                raise AssertionError
            assert f"--workdir={path}: " in str(error.value)
            assert (first.path / "config.json").read_text() == "mine"
    with (
        pytest.raises(ValueError, match="already holds a run"),
        run_folder.open_(path, overwrite=False, resume=False),
    ):
        raise AssertionError
    assert names(tmp_path / "run") == {"config.json"}


# Rows


ROWS = [{"training": "a", "accuracy": 0.5}, {"training": "é\u2028", "épsilon": None}]


def lines(*rows: dict) -> bytes:
    """With letters of several bytes, as others may write them."""
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert run_folder.read_rows(path) == []
    run_folder.append_rows(path, ROWS)
    run_folder.append_rows(path, ROWS[:1])
    assert run_folder.read_rows(path) == [*ROWS, ROWS[0]]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("before", [[], ROWS[:1], ROWS])
def test_a_line_that_was_cut_anywhere_costs_no_other_row(before, tmp_path):
    """At every byte, also inside of a letter and right before the end of the line."""
    path, last, new = tmp_path / "rows.jsonl", lines(ROWS[1]), {"training": "c"}
    assert len(last) > len(last.decode())
    for cut in range(len(last)):
        path.write_bytes(lines(*before) + last[:cut])
        assert run_folder.read_rows(path) == before, cut
        run_folder.append_rows(path, [new])
        assert run_folder.read_rows(path) == [*before, new], cut
        run_folder.append_rows(path, [ROWS[1]])
        assert run_folder.read_rows(path) == [*before, new, ROWS[1]], cut
    assert path.read_bytes()[: len(lines(*before))] == lines(*before)


def test_two_that_append_lose_nothing(tmp_path):
    """Half a line of the other is the only thing that an append removes."""
    path = tmp_path / "rows.jsonl"
    path.touch()
    with path.open("ab") as other:
        run_folder.append_rows(path, ROWS[:1])
        other.write(lines(ROWS[1]))
    run_folder.append_rows(path, ROWS[:1])
    assert run_folder.read_rows(path) == [*ROWS, ROWS[0]]


@pytest.mark.parametrize("line", [b'{"a": 1}{"b": 2}', b"[1]", b"", b'{"a": "\xff"}'])
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(ROWS[0]) + line + b"\n" + lines(ROWS[1]))
    with pytest.raises(ValueError, match="rows.jsonl: line 2 is damaged: expected"):
        run_folder.read_rows(path)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b'{"a": \xff}', b"[" * 100_000, b"null"]
)
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"summary\.json is damaged.*--overwrite"):
        run_folder.RunDir(tmp_path).json("summary.json")
