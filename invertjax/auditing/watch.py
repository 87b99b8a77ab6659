"""Callbacks of those who follow an audit while it runs."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from invertjax import driver
from invertjax.base import Arrays, Row


class Watch(NamedTuple):
    """Callbacks for what happens during an audit.

    chunk: told a `driver.Progress` after every chunk of steps.
    check: called between chunks; it may raise a KeyboardInterrupt.
    update: told the row and the arrays of every update that is finished.
    doing: told in words what takes long before the first step; returns a context.
    """

    chunk: Callable[[driver.Progress], None] = lambda progress: None
    check: Callable[[], None] = lambda: None
    update: Callable[[Row, Arrays], None] = lambda row, arrays: None
    doing: Callable[[str], contextlib.AbstractContextManager[None]] = lambda words: (
        contextlib.nullcontext()
    )

    def on_chunk(self, progress: driver.Progress) -> None:
        """Reports that a chunk is done, and raises if the audit was interrupted."""
        self.chunk(progress)
        self.check()

    def collecting(self, into: list[tuple[Row, Arrays]]) -> "Watch":
        """Returns callbacks that also put what is finished into a list."""

        def update(row: Row, arrays: Arrays) -> None:
            into.append((row, arrays))

        return self._replace(update=update)


SILENT = Watch()
