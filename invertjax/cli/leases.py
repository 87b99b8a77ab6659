"""Divides work among processes that share a folder, and nothing else.

A lease is a file that only one process can make, touched as long as it is at work. Who
is killed leaves it behind; it counts as gone once its process is, or, where nobody here
can tell, such as on another machine, once it was not touched for a minute.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from typing import Any, cast

TOUCHED = 10.0  # seconds between two touches
STALE = 60.0  # seconds without a touch
_MOST = 1000  # bytes that are read of a lease

_HELD: set[str] = set()  # tokens of this process's leases


@contextlib.contextmanager
def held(
    folder: pathlib.Path, block: str
) -> Generator[Callable[[], bool] | None, None, None]:
    """Holds a block for this process alone, until the end of the `with`.

    Args:
      folder: of the leases.
      block: its name.

    Yields:
      A function that says whether the block still is this process's: one that sleeps
      for a minute may lose it. None if another process has it.

    Raises:
      OSError: if the lease cannot be written; it is not there then.
    """
    file, token = folder / block, uuid.uuid4().hex

    def still() -> bool:
        return _mark(_content(file)).get("token") == token

    _HELD.add(token)
    try:
        if not _taken(file, token):
            yield None
            return
        with _touched(file, still):
            try:
                yield still
            finally:
                if still():
                    file.unlink(missing_ok=True)
    finally:
        _HELD.discard(token)


def busy(folder: pathlib.Path) -> bool:
    """Returns whether a process holds any lease of a folder."""
    files = list(folder.glob("[!.]*"))
    return any(_left_behind(file) is None and os.path.lexists(file) for file in files)


def _taken(file: pathlib.Path, token: str) -> bool:
    """Makes the file of a lease; returns whether that worked."""
    pid = os.getpid()
    mark = {"host": _machine(), "pid": pid, "started": _started(pid), "token": token}
    for _ in range(2):  # the second time after clearing what was left behind
        try:
            _make(file, json.dumps(mark).encode())
            return True
        except FileExistsError:
            left = _left_behind(file)
            if left is None:
                return False
            _clear(file, left)
    return False


def _make(file: pathlib.Path, content: bytes) -> None:
    """Makes a new file, and leaves none behind after an error such as a full disk."""
    stream = file.open("xb")
    try:
        with stream:
            stream.write(content)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _content(file: pathlib.Path) -> bytes:
    """Returns the beginning of a regular file, which is all of a lease; empty where
    there is none that can be read."""
    # Neither a link, which may lead anywhere, nor a pipe, which nobody may ever fill.
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(file, os.O_RDONLY | careful), "rb") as stream:
            return stream.read(_MOST) or b""
    except OSError:
        return b""


def _mark(content: bytes) -> dict[str, Any]:
    """Returns the content of a lease; nothing if it is torn, or not of our making."""
    try:
        mark = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], mark) if isinstance(mark, dict) else {}


def _clear(file: pathlib.Path, left: bytes) -> None:
    """Removes a lease that was left behind, unless it is another by now."""
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        file.rename(aside)  # of several only one can
        if _content(aside) != left:
            os.link(aside, file)
    with contextlib.suppress(OSError):
        aside.unlink()


def _left_behind(file: pathlib.Path) -> bytes | None:
    """Returns the content of a lease whose holder is gone, None if there is one."""
    try:
        age = abs(time.time() - file.lstat().st_mtime)  # a clock may have been wrong
    except OSError:
        return None  # just gone
    content = _content(file)
    alive = _alive(_mark(content))
    gone = age > STALE if alive is None else not alive
    return content if gone else None


def _alive(mark: dict[str, Any]) -> bool | None:
    """Returns whether the process that made a lease still runs; None where only the
    age of the lease tells."""
    pid = mark.get("pid")
    if mark.get("host") != _machine() or type(pid) is not int or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is there, and another user's
        pass
    started = _started(pid)
    if started is None:
        return None
    if started != mark.get("started"):  # ended, and its number is another's by now
        return False
    return pid != os.getpid() or any(mark.get("token") == held for held in _HELD)


def _machine() -> str:
    """Returns the name of what process numbers belong to: a start of this machine, and
    of a container on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
        parts += [boot.strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Returns when a process of this machine started, "" if it has ended and nobody has
    asked how; None where the system does not tell: only Linux does."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    facts = status.rpartition(")")[2].split()
    return "" if facts[:1] == ["Z"] else facts[19]


@contextlib.contextmanager
def _touched(
    file: pathlib.Path, still: Callable[[], bool]
) -> Generator[None, None, None]:
    """Touches a lease from time to time, as long as this process holds it."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(TOUCHED):
            with contextlib.suppress(OSError):
                if still():
                    os.utime(file)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
