"""What a run has done is on disk soon, and a kill at any moment leaves a run to go on.

Clocks are told the time; nothing here waits.
"""

import json
import os
from typing import NamedTuple

import numpy as np
import pytest

from invertjax.cli import recorder, run_folder
from invertjax.cli.recorder import ARRAYS, FLUSH_SECONDS, FLUSH_TIMES, Recorder

ROW = {"stopped": "budget"}


class State(NamedTuple):
    """As a federation's: how many rounds are done, and what came of them."""

    round: np.ndarray
    params: np.ndarray


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Killed(BaseException):
    """The end of the process: nothing after it happens."""


def state_after(rounds: int) -> State:
    return State(np.asarray(rounds), np.full(3, rounds, np.float32))


STATE = recorder.state(state_after(0), lambda row, state: row["round"] < state.round)


def opened(path, store, clock=None):
    with run_folder.open_(str(path), overwrite=False, resume=True) as folder:
        return Recorder(folder, store, clock or Clock())


def add(run, number):
    """The row of a target or of a round, and what belongs to it."""
    new = {"image": np.full((2, 3), number)}
    if run.store is STATE:
        new = state_after(number + 1)
    run.add({**ROW, "round": number, "seconds": 2.0 * number}, new)


def written(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("store", [ARRAYS, STATE])
def test_a_run_goes_on_with_what_is_on_disk(store, tmp_path):
    with opened(tmp_path, store) as run:
        for number in range(3):
            add(run, number)
    again = opened(tmp_path, store)
    assert again.rows == run.rows and len(again.rows) == 3
    assert again.seconds == 4.0 and run.seconds == 0.0
    np.testing.assert_equal(again.payload, run.payload)
    before = written(tmp_path)
    assert set(before) == {
        "metrics.jsonl",
        "state.npz" if store is STATE else "reconstructions.npz",
    }
    with again:  # nothing new: nothing to write
        again.flush_in_time()
    assert written(tmp_path) == before


def test_a_round_without_a_row_moves_the_state(tmp_path):
    with opened(tmp_path, STATE) as run:
        add(run, 0)
        run.add(None, state_after(2))
    again = opened(tmp_path, STATE)
    assert len(again.rows) == 1 and again.payload.round == 2


@pytest.mark.parametrize("store", [ARRAYS, STATE])
@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_moment_leaves_a_run_to_go_on(
    store, rows, moment, tmp_path, monkeypatch
):
    """Before and after each of the two files is in its place: what was on disk before
    stays, and rows and payload are of the same targets or rounds."""
    replace = os.replace
    for kill_at in (1, 2):
        folder = tmp_path / str(kill_at)
        run, calls = opened(folder, store), []
        for number in range(rows):
            add(run, number)
        if rows:
            run.flush()
        add(run, rows)

        def killing(*args, calls=calls, kill_at=kill_at):
            calls.append(args)
            if len(calls) == kill_at and moment == "before":
                raise Killed
            replace(*args)
            if len(calls) == kill_at:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", killing)
            run.flush()
        again = opened(folder, store)
        complete = (kill_at, moment) == (2, "after")
        assert len(again.rows) == (rows + 1 if complete else rows)
        assert [row["round"] for row in again.rows] == list(range(len(again.rows)))
        expected = state_after(len(again.rows))
        if store is ARRAYS:
            expected = [{"image": np.full((2, 3), i)} for i in range(len(again.rows))]
        np.testing.assert_equal(again.payload, expected)


def test_a_row_says_that_its_arrays_are_there(tmp_path, monkeypatch):
    """Also to those who look at the folder after a kill, before anybody goes on."""
    run, replace, seen = opened(tmp_path, ARRAYS), os.replace, []

    def watched(*args):
        replace(*args)
        rows = run_folder.read_rows(tmp_path / "metrics.jsonl")
        with np.load(tmp_path / "reconstructions.npz") as archive:
            seen.append((len(rows), len(archive["image"])))

    monkeypatch.setattr(os, "replace", watched)
    for number in range(2):
        add(run, number)
        run.flush()
    assert seen == [(0, 1), (1, 1), (1, 2), (2, 2)]


def test_what_takes_long_to_write_is_written_seldom(tmp_path):
    clock, writing = Clock(), 3.0

    def save(folder, payload):
        clock.now += writing

    run = opened(tmp_path, ARRAYS._replace(save=save), clock)
    add(run, 0)
    clock.now += FLUSH_SECONDS
    add(run, 1)
    assert not written(tmp_path)  # not later than a second: at that very moment
    clock.now += 0.1
    run.flush_in_time()  # between two rows, too
    assert len(run_folder.read_rows(tmp_path / "metrics.jsonl")) == 2
    for wait, rows in ((FLUSH_TIMES * writing, 2), (0.1, 4)):
        clock.now += wait
        add(run, 2)
        assert len(run_folder.read_rows(tmp_path / "metrics.jsonl")) == rows


def test_without_news_nothing_is_written(tmp_path):
    clock = Clock()
    run = opened(tmp_path, STATE, clock)
    clock.now += 1e6
    run.flush_in_time()
    assert not written(tmp_path)
    run.flush()  # asked for: the start is a state to go on from
    assert set(written(tmp_path)) == {"metrics.jsonl", "state.npz"}


def test_targets_that_were_interrupted_are_done_again(tmp_path):
    """As folders of former versions have them."""
    rows = [{**ROW, "target": 0}, {"target": 1, "stopped": "interrupted"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    images = np.arange(8.0).reshape(2, 4)
    np.savez(tmp_path / "reconstructions.npz", image=images, label=np.array([5, 6]))
    run = opened(tmp_path, ARRAYS)
    assert run.rows == rows[:1]
    np.testing.assert_equal(run.payload, [{"image": images[0], "label": 5}])


def test_a_state_of_a_former_version_is_read(tmp_path):
    run_folder.write(tmp_path / "metrics.jsonl", b'{"round": 0}\n{"round": 1}\n')
    np.savez(tmp_path / "state.npz", leaf_00001=np.ones(3, "f4"), leaf_00000=1)
    run = opened(tmp_path, STATE)
    assert run.rows == [{"round": 0}] and run.payload.params.tolist() == [1, 1, 1]


@pytest.mark.parametrize("store", [ARRAYS, STATE])
@pytest.mark.parametrize("name", ["metrics.jsonl", "payload"])
@pytest.mark.parametrize("content", [b"[1]\n", b"not json\n", b"{}\n"])
def test_what_cannot_be_read_is_refused_in_a_line(store, name, content, tmp_path):
    with opened(tmp_path, store) as run:
        add(run, 0)
    files = sorted(tmp_path.iterdir())  # metrics.jsonl, then the payload's
    files[name == "payload"].write_bytes(content)
    with pytest.raises(ValueError, match="^--resume: .*tart again with --overwrite"):
        opened(tmp_path, store)


def test_a_run_is_complete_once_its_summary_says_so(tmp_path):
    run = opened(tmp_path, ARRAYS)
    run.start({"settings": {"seed": 1}})
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["seed"] == 1
    for summary, complete in (({}, False), ({"interrupted": True}, False)):
        run.folder.write_json("summary.json", summary)
        assert run.complete() is complete
    run.folder.write_json("summary.json", {"interrupted": False})
    assert run.complete() is True


def test_elsewhere_nothing_is_written():
    run = recorder.Elsewhere()
    with run:
        run.start({})
        run.add({"target": 0}, {"image": 0})
        run.flush_in_time()
    assert (*run.rows, *run.payload, run.complete()) == (False,)


def test_targets_that_are_there_twice_are_refused(tmp_path):
    """Else their mean would count them twice."""
    with opened(tmp_path, ARRAYS) as run:
        for target in range(2):
            run.add({**ROW, "target": target}, {"target": np.asarray(target)})
    file = tmp_path / "metrics.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second + first)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: target 0 is there twice"):
        opened(tmp_path, ARRAYS)


LIKE = recorder.Like(2, {"target": ((), "i"), "image": ((2, 3), "f")})


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": np.zeros((2, 2, 4))},
        {"image": np.zeros((2, 2, 3), int)},
        {"image": np.full((2, 2, 3), np.nan)},
        {"image": np.zeros((1, 2, 3))},
        {"images": np.zeros((2, 2, 3))},
        {"image": np.zeros((99, 2, 3))},
        {"target": np.array([5, 6])},
    ],
)
def test_arrays_of_another_run_are_refused(wrong, tmp_path):
    store = recorder.by_target(like=LIKE)
    right = {"target": np.arange(2), "image": np.zeros((2, 2, 3))}
    rows = "".join(json.dumps({**ROW, "target": i}) + "\n" for i in range(2))
    (tmp_path / "metrics.jsonl").write_text(rows)
    np.savez(tmp_path / "reconstructions.npz", **right)
    assert len(opened(tmp_path, store).rows) == 2
    kept = {k: v for k, v in right.items() if k != "image" or "images" not in wrong}
    np.savez(tmp_path / "reconstructions.npz", **{**kept, **wrong})
    with pytest.raises(ValueError, match="^--resume: .*tart again with --overwrite"):
        opened(tmp_path, store)
