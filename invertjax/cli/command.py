"""What the command lines share: one line and an exit code for all that goes wrong."""

import sys
from collections.abc import Callable

from absl import flags

from invertjax.cli import ending
from invertjax.driver import layout

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def guarded(body: Callable[[], int]) -> int:
    """`body()`, the exit code; what is wrong with the input is one line on stderr."""
    return ending.of(lambda: _guarded(body))


def _guarded(body):
    try:
        return body()
    except ValueError as error:
        if not _is_ours(error):  # not bad input but a fault: show where
            raise
        return said(error, BAD_INPUT)
    except layout.Lost:  # `ending` has the last word
        raise
    except (OSError, MemoryError) as error:  # a full disk; a trial that does not fit
        return said(error, FAILED)
    except KeyboardInterrupt:
        return said("interrupted.", INTERRUPTED)


def parse(argv: list[str]) -> list[str]:
    """Sets the flags; a wrong one is one line and exit code 2, as any bad input."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(said(error, BAD_INPUT))
    except SystemExit:  # absl has printed help, and calls that a failure
        sys.exit(0)


def said(error: object, code: int) -> int:
    """The code, with one line on stderr."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def check_arguments(argv: list[str]) -> None:
    """Raises `ValueError` on arguments that are no flags."""
    if len(argv) > 1:
        raise ValueError(f"Unexpected argument {argv[1]!r}: flags start with --.")


def _is_ours(error: Exception) -> bool:
    """Whether this project raised the error itself, about what it was given."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.partition(".")[0] in (
        "__main__",
        "experiments",
        "invertjax",
        "models",
    )
