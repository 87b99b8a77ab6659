"""How far a long job is, and how long it will still take.

On a terminal that is a bar. Elsewhere, as in the log of a batch job, it is a line on
standard error every half minute, also while a program compiles; jobs that are done
before the first are silent.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import TextIO, TypeVar

from tqdm import tqdm

from invertjax.cli import compiling, interrupts

SECONDS = 30.0  # between two lines, and before the first
LONG = 5.0  # seconds of a stage that are worth a line
_COMPILING = "compiling"  # how stages begin that are nothing else
_BEAT = 1.0  # seconds between two looks at the clock

_OPEN: list["Bar"] = []  # the innermost last: it alone speaks without being asked

T = TypeVar("T")


class Bar:
    """The progress of one job; a context manager.

    Args:
      words: what is being done, such as "training".
      total: steps in all; None where nobody knows yet.
      done: steps that were done before, by a run that this one goes on with.
      unit: what a step is called on a terminal.
      shown: False in processes that print nothing.
      stream: where it is shown; by default standard error.
      clock: tells seconds.
    """

    def __init__(
        self,
        words: str,
        *,
        total: int | None = None,
        done: int = 0,
        unit: str = "it",
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.words, self.note, self.total = words, "", total
        self.done = self.before = done
        self.stream, self.clock = stream or sys.stderr, clock
        self.begun = self.said = clock()
        self.stage: float | None = None  # since when something else is done
        self.over_ = threading.Event()
        self.lock = threading.Lock()
        on_terminal = shown and self.stream.isatty()
        self.in_lines = shown and not on_terminal
        self.tqdm = None
        if on_terminal:
            self.tqdm = tqdm(
                file=self.stream, desc=words, total=total, initial=done, unit=unit
            )

    def __enter__(self) -> "Bar":
        _OPEN.append(self)
        if self.in_lines or self.tqdm is not None:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over_.set()
        _OPEN.remove(self)
        if self.tqdm is not None:
            self.tqdm.close()

    def add(self, steps: int = 1, note: str | None = None) -> None:
        """Counts further steps, at most to the end; see `reach`."""
        self.reach(self.done + steps, note=note)

    def reach(
        self, done: int, total: int | None = None, note: str | None = None
    ) -> None:
        """Sets the number of steps that are done, at most to the end.

        Args:
          done: steps that are done, in all.
          total: steps that there are, where that has changed.
          note: what came of them so far, such as a score; by default as it was.
        """
        self.total = self.total if total is None else total
        self.done = done if self.total is None else min(done, self.total)
        self.note = self.note if note is None else note
        if self.tqdm is not None:
            self.tqdm.total = self.total
            self.tqdm.set_postfix_str(self.note, False)
            self.tqdm.update(self.done - self.tqdm.n)
        self._print()

    def skip(self, steps: int) -> None:
        """Counts steps that were done before: they say nothing of the pace."""
        self.before += steps
        if self.tqdm is not None:
            self.tqdm.initial = self.before
        self.add(steps)

    def say(self, words: str) -> None:
        """Changes the words for what is being done."""
        if self.tqdm is not None and words != self.words:
            self.tqdm.set_description_str(words)
        self.words = words
        self._print()

    @contextlib.contextmanager
    def doing(self, words: str) -> Generator[None, None, None]:
        """Says what is done before the steps go on, and how long it took where that was
        long. It says nothing of the pace of the steps."""
        before, start = self.words, self.clock()
        compiled, self.stage = compiling.seconds(), start
        self.say(words)
        try:
            yield
        finally:
            took, self.stage = self.clock() - start, None
            self.begun += took
            self.say(before)
        if took >= LONG and (self.in_lines or self.tqdm is not None):
            inside = compiling.seconds() - compiled
            part = "" if words.startswith(_COMPILING) else _part(inside, took)
            self.write(f"{words}: {duration(took)}{part}")

    def write(self, line: str) -> None:
        """Writes a line of its own on the stream, above the bar."""
        tqdm.write(line, file=self.stream)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Goes through items, a step each."""
        for item in items:
            interrupts.check()
            yield item
            self.add()

    def _tick(self) -> None:
        """Shows that time passes, also where no step ends for long."""
        while not self.over_.wait(_BEAT):
            if _OPEN and _OPEN[-1] is self:
                self.beat()

    def beat(self) -> None:
        """Shows the time that has passed."""
        if self.tqdm is not None:
            self.tqdm.refresh()
        self._print()

    def _print(self) -> None:
        """Prints a line if it is time, where there is no terminal."""
        with self.lock:
            if self.in_lines and self.clock() - self.said >= SECONDS:
                self.said = self.clock()
                print(self._line(), file=self.stream, flush=True)

    def _line(self) -> str:
        """Returns words, steps, the share of them, the time left, and the note."""
        if self.stage is not None:
            return f"{self.words}: {duration(self.clock() - self.stage)} so far"
        if not self.total:
            return f"{self.words}: {self.done}{self.note and f'; {self.note}'}"
        parts = [f"{self.done}/{self.total}", f"{self.done / self.total:.0%}"]
        if self.done > self.before:
            pace = (self.clock() - self.begun) / (self.done - self.before)
            parts.append(f"about {duration(pace * (self.total - self.done))} left")
        return f"{self.words}: {', '.join(parts)}{self.note and f'; {self.note}'}"


def over(
    items: Iterable[T], words: str, *, unit: str = "it", shown: bool = True
) -> Iterator[T]:
    """Goes through items under a bar of their own; see `Bar`."""
    total = len(items) if isinstance(items, Sized) else None
    with Bar(words, total=total, unit=unit, shown=shown) as bar:
        yield from bar.over(items)


@contextlib.contextmanager
def stage(words: str, *, shown: bool = True) -> Generator[None, None, None]:
    """Says what is done, where nobody can count steps of it; see `Bar.doing`."""
    with Bar(words, shown=shown) as bar, bar.doing(words):
        yield


def _part(compiled: float, took: float) -> str:
    """Returns how much of a time was compiling, where that is worth a word."""
    if compiled < LONG:
        return ""
    return f", {duration(min(compiled, took))} of them compiling"


def duration(seconds: float) -> str:
    """Returns a time as a person says it, in one unit: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
