"""Ctrl-C between chunks, where the best so far can be kept."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Holds a Ctrl-C back until the given function is called, which then raises it.

    A second Ctrl-C is not held back.
    """
    came = threading.Event()

    def raise_if_it_came():
        if came.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield raise_if_it_came  # signals go to the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(number, frame):
        came.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_it_came
    finally:
        signal.signal(signal.SIGINT, before)
