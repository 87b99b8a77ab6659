"""How one of several processes ends if another has stopped: at once, with a word."""

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

import jax

from invertjax.driver import layout


class Ending:
    """How this process ends if another has stopped: with one line, and exit code 1.

    where: what to do then. joined: the others came. agreed: all processes end now, and
    wait for one another.
    """

    def __init__(self):
        self.where, self.joined, self.agreed = "", False, False
        self.once = threading.Lock()

    def alone(self, hint: str = "") -> None:
        """Ends the process, where it is one of several."""
        if not self.joined:
            return
        self.last(f"another process of this run stopped{hint}{self.where}.")

    def last(self, line: str) -> None:
        self.once.acquire()  # for good: who comes second waits for the end
        os.write(2, f"error: {line}\n".encode())
        os._exit(1)

    def on_abort(self) -> None:
        """Has the last word where JAX aborts the process from a thread of its own.

        It does so when the coordinator has gone or a heartbeat is missed. Python's own
        `signal` would act on the main thread only, which does not come back.
        """
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
        self.handler = handler(lambda number: self.aborted())  # kept alive
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler), handler
        libc.signal(signal.SIGABRT, self.handler)

    def aborted(self) -> None:
        self.alone(" (JAX's own message is above)")
        self.last("not all processes of this run came in time.")


ENDING = Ending()  # of this process


def of(body: Callable[[], int]) -> int:
    """`body()`, the exit code of the command line.

    A process that ends without the others does it at once: by losing it they know. Left
    to itself JAX would wait for them at its end, and they wait for this process.
    """
    try:
        code = body()
    except layout.Lost:
        ENDING.alone()
        raise
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    if jax.distributed.is_initialized() and not ENDING.agreed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
