"""Runs a command that sends itself a signal at a point that no clock decides.

    python -m support.signalled SIGNAL MODULE:FUNCTION FILES COUNT COMMAND [FLAGS]

`python -m COMMAND FLAGS`, which gets the signal right before the first call of the
function at which COUNT files match the pattern FILES.
"""

import functools
import glob
import importlib
import operator
import os
import runpy
import signal
import sys


def main(
    name: str, function: str, files: str, count: str, command: str, *flags: str
) -> None:
    module, _, path = function.partition(":")
    parent, _, attribute = path.rpartition(".")
    owner = importlib.import_module(module)
    owner = operator.attrgetter(parent)(owner) if parent else owner
    original, due = getattr(owner, attribute), [signal.Signals[name]]

    @functools.wraps(original)
    def signalled(*args, **kwargs):
        if due and len(glob.glob(files)) >= int(count):
            os.kill(os.getpid(), due.pop())
        return original(*args, **kwargs)

    setattr(owner, attribute, signalled)
    sys.argv[1:] = flags
    runpy.run_module(command, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
