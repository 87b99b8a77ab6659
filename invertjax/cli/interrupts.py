"""Ctrl-C waits for the end of a chunk, where the best so far can be kept."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def deferred() -> Generator[Callable[[], None], None, None]:
    """Holds a Ctrl-C back until the given function is called, which then raises it.

    A second Ctrl-C is not held back.
    """
    came = threading.Event()

    def raise_if_it_came() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield raise_if_it_came  # signals go to the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: object) -> None:
        del number, frame
        came.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_it_came
    finally:
        signal.signal(signal.SIGINT, before)
