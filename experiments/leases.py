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

TOUCHED = 10.0  # seconds between two touches
STALE = 60.0  # seconds without a touch


@contextlib.contextmanager
def held(folder: pathlib.Path, block: str) -> Iterator[Callable[[], bool] | None]:
    """The block for this process alone, until the end of the `with`.

    Yields:
      Whether it still is, as a function: a process that sleeps for a minute may lose
      it. None if another process has it.
    """
    file, token = folder / block, uuid.uuid4().hex
    if not _taken(file, token):
        yield None
        return

    def still():
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


def _taken(file, token):
    mark = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
    for _ in range(2):  # the second time after clearing what was left behind
        try:
            with file.open("x", encoding="utf-8") as stream:
                json.dump(mark, stream)
            return True
        except FileExistsError:
            if not _abandoned(file):
                return False
            # Of several who see it abandoned only one can rename it.
            aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
            with contextlib.suppress(FileNotFoundError):
                file.rename(aside)
                aside.unlink()
    return False


def _abandoned(file):
    try:
        age = time.time() - file.stat().st_mtime
        mark = json.loads(file.read_text("utf-8") or "{}")
    except (OSError, ValueError):
        return False  # just gone, or just being written
    if mark.get("host") == socket.gethostname() and "pid" in mark:
        return not _alive(mark["pid"])
    return age > STALE


def _alive(pid):
    if pid == os.getpid():
        return False  # a former process had our number: we have not taken it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _touch(file, done):
    while not done.wait(TOUCHED):
        with contextlib.suppress(OSError):
            os.utime(file)
