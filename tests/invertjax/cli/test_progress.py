"""Progress where there is a terminal and where there is none, at times that we tell."""

import io
import time

import jax
import pytest

from invertjax.cli import compiling, progress
from invertjax.cli.progress import SECONDS, Bar


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log():
    return io.StringIO()


def lines(log: io.StringIO) -> list[str]:
    return log.getvalue().splitlines()


def test_short_jobs_print_nothing_where_there_is_no_terminal(clock, log):
    with Bar("inverting", total=100, stream=log, clock=clock) as bar:
        for _ in range(100):
            clock.now += 0.99 * SECONDS / 100
            bar.add(note="objective 1")
        bar.say("scoring")
    assert lines(log) == []


def test_a_line_has_the_share_the_time_left_and_the_note(clock, log):
    bar = Bar("inverting", total=1000, stream=log, clock=clock)
    clock.now += 30
    bar.reach(300, note="objective 1.00e-03")
    # 30 s for 300: a tenth of a second for each of the 700 that are left
    expected = "inverting: 300/1000, 30%, about 70 s left; objective 1.00e-03"
    assert lines(log) == [expected]


def test_a_line_comes_every_thirty_seconds_at_most(clock, log):
    bar = Bar("training", total=1000, stream=log, clock=clock)
    for _ in range(300):
        clock.now += 1
        bar.add()
        bar.say("training")
    found = [line.split(",")[0] for line in lines(log)]
    assert found == [f"training: {done}/1000" for done in range(30, 301, 30)]


def test_the_time_left_is_that_of_the_pace_so_far(clock, log):
    """At a steady pace what has passed and what is left are the whole, at any time."""
    bar = Bar("training", total=600, stream=log, clock=clock)
    for passed in range(30, 600, 30):
        clock.now += 30
        bar.add(30)
        left = 600 - passed
        said = f"{left} s" if left < 90 else f"{left / 60:.0f} min"
        assert lines(log)[-1].endswith(f"about {said} left")
    assert len(lines(log)) == 19


@pytest.mark.parametrize("when", ["given", "found later"])
def test_what_was_done_before_says_nothing_of_the_pace(when, clock, log):
    done = 500 if when == "given" else 0
    bar = Bar("attacks", total=1000, done=done, stream=log, clock=clock)
    bar.skip(500 - done)
    clock.now += 50
    bar.say("attacks")
    assert lines(log) == ["attacks: 500/1000, 50%"]  # at no pace yet
    clock.now += 50
    bar.add(100)
    assert lines(log)[-1] == "attacks: 600/1000, 60%, about 7 min left"  # 400 s


def test_a_line_without_a_total_says_what_is_done(clock, log):
    bar = Bar("inverting", stream=log, clock=clock)
    clock.now += 30
    bar.add(3, note="objective 2")
    clock.now += 30
    bar.reach(4, total=8)
    said = ["inverting: 3; objective 2"]
    assert lines(log) == [*said, "inverting: 4/8, 50%, about 60 s left; objective 2"]


def test_nothing_goes_beyond_the_end(clock, log):
    bar = Bar("training", total=4, stream=log, clock=clock)
    bar.add(3)
    clock.now += 40
    bar.add(2)  # the test after the last round
    assert lines(log) == ["training: 4/4, 100%, about 0 s left"]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_processes_that_print_nothing_show_nothing(stream, clock):
    stream = stream()
    with Bar("inverting", total=9, shown=False, stream=stream, clock=clock) as bar:
        clock.now += 100
        bar.add(note="objective 1")
        bar.say("scoring")
    assert stream.getvalue() == "" and bar.done == 1


def test_on_a_terminal_there_is_a_bar(clock):
    terminal = Terminal()
    options = dict(total=8, done=2, unit="round", stream=terminal, clock=clock)
    with Bar("training", **options) as bar:
        bar.skip(2)
        bar.say("attacking")
        assert "attacking:  50%" in terminal.getvalue()  # at once: it may take long
        clock.now += 1000
        bar.add(2, note="accuracy 12%")
        bar.write("compiling")
        bar.reach(7)
    shown = terminal.getvalue()
    assert "7/8" in shown and "round" in shown and "accuracy 12%" in shown
    assert "compiling\n" in shown and "left" not in shown
    assert shown.count("\n") == 2  # that line, and the end of the bar


def test_lines_of_others_go_to_the_stream(log):
    Bar("reading", total=3, stream=log).write("compiling program 1")
    assert lines(log) == ["compiling program 1"]


def test_by_default_standard_error_has_it(capsys, clock):
    bar = Bar("inverting", total=2, clock=clock)
    clock.now += 30
    bar.add()
    printed = capsys.readouterr()
    assert printed.err.startswith("inverting: 1/2") and printed.out == ""


@pytest.mark.parametrize("items, total", [(range(3), 3), (iter("abc"), None)])
def test_items_come_as_they_are_and_are_counted(items, total, monkeypatch):
    bars, made = [], progress.Bar

    def kept(*args, **options):
        bars.append(made(*args, **options))
        return bars[-1]

    monkeypatch.setattr(progress, "Bar", kept)
    found = [(item, bars[0].done) for item in progress.over(items, "reading")]
    assert [done for _, done in found] == [0, 1, 2] and bars[0].done == 3
    assert [item for item, _ in found] == list(range(3) if total else "abc")
    assert bars[0].total == total


@pytest.mark.parametrize(
    "seconds, said",
    [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (5340, "89 min"), (9000, "2.5 h")],
)
def test_a_duration_is_in_one_unit(seconds, said):
    assert progress.duration(seconds) == said


# While nothing is counted


def test_what_is_done_meanwhile_is_said_and_is_no_part_of_the_pace(clock, log):
    bar = Bar("inverting", total=100, stream=log, clock=clock)
    with bar.doing("compiling the attack"):
        clock.now += 31
        bar.beat()
        clock.now += 29
    clock.now += 40
    bar.add(50)  # a second each, but for the minute before
    assert lines(log) == [
        "compiling the attack: 31 s so far",
        "compiling the attack: 60 s",
        "inverting: 50/100, 50%, about 40 s left",
    ]


def test_what_is_over_at_once_is_not_worth_a_line(clock, log):
    bar = Bar("inverting", total=100, stream=log, clock=clock)
    with bar.doing("compiling the attack"):
        clock.now += 4
    assert lines(log) == []


def test_a_stage_says_how_much_of_it_was_compiling(clock, log, monkeypatch):
    monkeypatch.setattr(progress.compiling, "seconds", iter([1.0, 9.0]).__next__)
    bar = Bar("reading", stream=log, clock=clock)
    with bar.doing("reading"):
        clock.now += 20
    assert lines(log) == ["reading: 20 s, 8 s of them compiling"]


def test_a_bar_speaks_by_itself_and_only_the_innermost(clock, log, monkeypatch):
    """Time passes while a program compiles, and nobody calls the bar."""
    monkeypatch.setattr(progress, "_BEAT", 0.001)
    with Bar("outer", total=2, stream=io.StringIO(), clock=clock) as outer:
        with Bar("inner", total=2, stream=log, clock=clock):
            clock.now += 31
            deadline = time.monotonic() + 60
            while not log.getvalue() and time.monotonic() < deadline:
                time.sleep(0.001)
        assert lines(log) == ["inner: 0/2, 0%"]
        assert outer.stream.getvalue() == ""


def test_seconds_of_compiling_are_counted_once():
    watch = compiling._Watch()
    event = compiling._EVENTS[-1]
    before = time.monotonic()
    watch(event, 1e-9)
    time.sleep(0.02)
    watch(event, 0.01)
    watch(event, 0.01)  # beside the other, in a thread of its own
    watch("/jax/something/else", 5.0)
    assert 0.01 <= watch.total <= 0.01 + time.monotonic() - before - 0.02


def test_compiling_is_seen():
    before = compiling.seconds()
    jax.jit(lambda x: x * 2.5 + 1)(1.0)
    assert compiling.seconds() > before
