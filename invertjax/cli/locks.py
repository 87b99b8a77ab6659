"""Locks a folder, so that one process has it for itself as long as it runs.

The lock is the system's own: it ends with the process, whatever ends that. Where a file
system has no such locks, a lease takes its place.
"""

import contextlib
import os
import pathlib
from collections.abc import Generator

from invertjax.cli import leases

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE, LEASE = "_lock", "_lease"


class Taken(Exception):
    """Another process holds the folder."""


class _Unknown(Exception):
    """Neither the system nor the file system has locks."""


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Generator[None, None, None]:
    """Keeps a folder for this process alone, until the end of the `with`.

    Args:
      folder: is there.

    Raises:
      Taken: if another process has it.
      OSError: if it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = _locked(folder / FILE)
        except _Unknown:
            if stack.enter_context(leases.held(folder, LEASE)) is None:
                raise Taken from None
        else:
            stack.callback(_unlocked, folder / FILE, descriptor)
        yield


def _locked(file: pathlib.Path) -> int:
    """Returns the descriptor of the file, which is made and locked."""
    if fcntl is None:
        raise _Unknown
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(file, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Taken from None
        except OSError:
            os.close(descriptor)
            file.unlink(missing_ok=True)
            raise _Unknown from None
        os.close(descriptor)


def _unlocked(file: pathlib.Path, descriptor: int) -> None:
    """Removes the file while it is locked: whoever opens it before sees that."""
    with contextlib.suppress(OSError):
        file.unlink()
    os.close(descriptor)


def _is_still(file: pathlib.Path, descriptor: int) -> bool:
    """Whether a file is the open one: its last holder may have removed that."""
    try:
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
