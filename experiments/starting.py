"""What a command does about signals before anything else, importing included."""

import os
import signal


def end_at_signals() -> None:
    """Lets Ctrl-C and SIGTERM end the process in a line, as there is nothing to lose.

    An exception would end imports in tracebacks, or be swallowed by them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    del frame
    os.write(2, b"error: interrupted.\n")
    os._exit(128 + number)
