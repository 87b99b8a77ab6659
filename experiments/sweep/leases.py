"""Who works on which block of a sweep: processes that share a folder, and nothing else.

A lease is a file that only one process can make, touched as long as it is at work. Who
is killed leaves it behind; it counts as gone once its process is, or, on another
machine, once it was not touched for a minute.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

TOUCHED = 10.0  # seconds between two touches
STALE = 60.0  # seconds without a touch

_HELD: set[str] = set()  # tokens of this process's leases


@contextlib.contextmanager
def held(folder: pathlib.Path, block: str) -> Iterator[Callable[[], bool] | None]:
    """Holds a block for this process alone, until the end of the `with`.

    Args:
      folder: of the leases.
      block: its name.

    Yields:
      A function that says whether the block still is this process's: one that sleeps
      for a minute may lose it. None if another process has it.
    """
    file, token = folder / block, uuid.uuid4().hex
    _HELD.add(token)
    if not _taken(file, token):
        _HELD.discard(token)
        yield None
        return

    def still() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(file.read_text("utf-8"))["token"] == token
        return False

    done = threading.Event()
    touching = threading.Thread(target=_touch, args=(file, done), daemon=True)
    touching.start()
    try:
        yield still
    finally:
        done.set()
        touching.join()
        if still():
            file.unlink(missing_ok=True)
        _HELD.discard(token)


def _taken(file: pathlib.Path, token: str) -> bool:
    """Makes the file of a lease; returns whether that worked."""
    mark = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
    for _ in range(2):  # the second time after clearing what was left behind
        try:
            with file.open("x", encoding="utf-8") as stream:
                json.dump(mark, stream)
            return True
        except FileExistsError:
            left = _left_behind(file)
            if left is None:
                return False
            _clear(file, left)
    return False


def _clear(file: pathlib.Path, left: str) -> None:
    """Removes a lease that was left behind, unless it is another by now."""
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        file.rename(aside)  # of several only one can
        if aside.read_text("utf-8") != left:
            os.link(aside, file)
    aside.unlink(missing_ok=True)


def _left_behind(file: pathlib.Path) -> str | None:
    """Returns the content of a lease whose holder is gone, None if there is one."""
    try:
        age = time.time() - file.stat().st_mtime
        text = file.read_text("utf-8")
        mark = json.loads(text or "{}")
    except (OSError, ValueError):
        return None  # just gone, or just being written
    if mark.get("host") == socket.gethostname() and "pid" in mark:
        return None if _alive(mark) else text
    return text if age > STALE else None


def _alive(mark: dict[str, Any]) -> bool:
    """Whether the process of this machine that made a lease still runs."""
    pid = mark["pid"]
    if pid == os.getpid():  # ours, or that of a former process of our number
        return mark.get("token") in _HELD
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """Whether it has ended, and nobody has asked how; only Linux says."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[:1] == ["Z"]


def _touch(file: pathlib.Path, done: threading.Event) -> None:
    """Touches a lease now and then, until it is done with."""
    while not done.wait(TOUCHED):
        with contextlib.suppress(OSError):
            os.utime(file)
