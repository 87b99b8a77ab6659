"""Ctrl-C and SIGTERM wait for a moment at which nothing is lost.

An exception in the middle of anything, such as compiling in other threads, may end in a
traceback, a segmentation fault, or nowhere. So a signal is only noted, and looked at
between stages. A second one ends the process at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came: list[int] = []  # signals that this process was sent while they were held
_holding = [False]


def check() -> None:
    """Raises a KeyboardInterrupt if a signal has come."""
    if _came:
        raise KeyboardInterrupt


def code() -> int:
    """Returns the exit code of a command that was interrupted: 130; of SIGTERM 143."""
    return 128 + (_came[0] if _came else signal.SIGINT)


@contextlib.contextmanager
def deferred() -> Generator[Callable[[], None], None, None]:
    """Holds signals back until `check`, which it yields, is called."""
    if _holding[0] or threading.current_thread() is not threading.main_thread():
        yield check  # signals go to the main thread only
        return
    _came.clear()
    _holding[0] = True
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        with _ended_by_a_second():
            yield check
    finally:
        _holding[0] = False
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, frame: object) -> None:
    del frame
    _came.append(number)


@contextlib.contextmanager
def _ended_by_a_second() -> Generator[None, None, None]:
    """Ends the process at its second signal, even if it is busy in compiled code.

    Python calls handlers between its own instructions only. But it writes to a file
    descriptor at once, on which a thread waits.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watching = threading.Thread(target=_wait, args=(reading,), daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread
        watching.join()
        os.close(reading)


def _wait(reading: int) -> None:
    count = 0
    while sent := os.read(reading, 1):
        if sent[0] not in SIGNALS:
            continue
        count += 1
        if count > 1:
            os.write(2, b"error: interrupted at once.\n")
            os._exit(128 + sent[0])
        if sys.stderr.isatty():
            os.write(2, b"\nEnding as soon as nothing is lost; once more: at once.\n")
