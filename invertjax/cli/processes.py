"""Several processes as one run: joined before JAX starts, and stopped together.

Every process reads the same data and builds the same trials. Process 0 alone writes
files and prints. On CPUs a process makes a device of every core that it may use: where
several share a machine, give each its share of the cores (`taskset`; Slurm does).
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from invertjax.cli import interrupts, startup
from invertjax.driver import layout

JOIN_SECONDS = 120  # for all processes to come
HEARTBEAT_SECONDS = 20  # of silence, after which a process counts as dead
BAD_INPUT, FAILED = 2, 1  # exit codes

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown

T = TypeVar("T")


class Place(NamedTuple):
    """The place of this process in a run of several, as the user has given it.

    coordinator: HOST:PORT of process 0. num_processes, process_id: as they say.
    detect: JAX finds out itself, in a Slurm, TPU pod or Kubernetes job.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    detect: bool = False


ALONE = Place()


def check(place: Place) -> None:
    """Refuses flags that do not go together, and starts nothing.

    Raises:
      ValueError: naming the flag, its value and what is right.
    """
    given = {
        flag: getattr(place, flag)
        for flag in ("coordinator", "num_processes", "process_id")
        if getattr(place, flag) is not None
    }
    if not given:
        return
    flag, value = next(iter(given.items()))
    if place.detect:
        raise ValueError(
            f"--{flag}={value} and --distributed exclude each other: give one."
        )
    if len(given) < 3:
        raise ValueError(
            f"--{flag}={value} needs --coordinator, --num_processes and --process_id "
            "together."
        )
    _check_address(given["coordinator"])
    _check_number(given["process_id"], given["num_processes"])


def _check_number(index: int, count: int) -> None:
    if count < 1:
        raise ValueError(f"--num_processes={count}: expected 1 or more.")
    if not 0 <= index < count:
        raise ValueError(
            f"--process_id={index}: expected 0 to {count - 1}, as "
            f"--num_processes={count}."
        )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"--coordinator={address}: expected HOST:PORT, e.g. 10.0.0.1:1234."
        )


def join(place: Place) -> None:
    """Makes this process one of its run, once all are there. Before JAX starts.

    Raises:
      ValueError: if JAX detects no job, if the address does not work, or if the
        processes have different numbers of devices.
    """
    if place == ALONE:
        return
    _divert_gloo()
    ENDING.on_abort()
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    named = "--distributed" if place.detect else f"--coordinator={place.coordinator}"
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            cluster_detection_method=None if place.detect else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        wanted = "a Slurm, TPU pod or Kubernetes job" if place.detect else "a free port"
        raise ValueError(f"{named}: expected {wanted} ({error}).") from None
    ENDING.joined = True
    _check_devices()


def _check_devices() -> None:
    held = Counter[int](device.process_index for device in _jax.devices())
    if len(set(held.values())) > 1:
        ENDING.agreed = True
        numbers = ", ".join(map(str, held.values()))
        raise ValueError(
            f"The processes have {numbers} devices: expected as many in each; on CPUs "
            "they are the cores that each may use (taskset), or JAX_NUM_CPU_DEVICES."
        )


def is_first() -> bool:
    """Returns whether this process writes and prints."""
    return _jax.process_index() == 0


def of_first(numbers: Any) -> np.ndarray:
    """Returns the numbers (int32) that process 0 has, in every process.

    Args:
      numbers: of one shape in all of them.
    """
    return layout.gather(np.asarray(numbers, np.int32))[0]


def together(stage: Callable[[], T]) -> T:
    """Returns `stage()` in every process; if one refuses its input, all of them stop.

    Raises:
      ValueError, OSError: what the stage has raised here, or that it has elsewhere.
    """
    code, raised = 0, None
    value: Any = None
    if not jax.distributed.is_initialized():  # of several each would have to know
        interrupts.check()
    try:
        value = stage()
    except (ValueError, OSError) as error:
        raised = error
        code = BAD_INPUT if isinstance(error, ValueError) else FAILED
    codes = layout.gather(np.int32(code))
    if not codes.any():
        return value
    ENDING.agreed = True
    if raised is not None:
        raise raised
    first = int(codes.argmax())
    kind = ValueError if codes[first] == BAD_INPUT else OSError
    raise kind(f"process {first} of this run stopped; its own message says why.")


def check_same(digest: str) -> None:
    """Refuses processes that were given other flags than process 0.

    Args:
      digest: of the settings, hexadecimal.
    """

    def compare() -> None:
        number = np.uint32(int(digest, 16) % 2**32)
        others = np.flatnonzero(layout.gather(number) != number)
        if others.size:
            raise ValueError(
                f"Process {_jax.process_index()} was given other flags than process "
                f"{others[0]}: expected the same run in all."
            )

    together(compare)


def memory_limit() -> float | None:
    """Returns the bytes of each device where all of a host share its memory.

    It is the least of all processes, as all must choose one layout; None on
    accelerators.
    """
    limit = startup.memory_limit()
    if limit is None:
        return None
    host = np.uint32(zlib.crc32(socket.gethostname().encode()))
    here = int((layout.gather(host) == host).sum())
    return float(layout.gather(limit / here).min())


class Ending:
    """How this process ends if another one has stopped: with one line, and exit code 1.

    Attributes:
      where: what the line says of going on, such as in which folder the results are.
      joined: whether the other processes came.
      agreed: whether all processes end now, and wait for one another.
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
        """Ends the process with a line on standard error."""
        self.once.acquire()  # for good: whoever comes second waits for the end
        os.write(2, f"error: {line}\n".encode())
        os._exit(FAILED)

    def on_abort(self) -> None:
        """Prints our last line if JAX aborts the process from a thread of its own.

        It does so when the coordinator has gone or a heartbeat is missed. Python's own
        `signal` would act on the main thread only, which does not come back.
        """
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
        self.handler = handler(self.aborted)  # kept alive
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler), handler
        libc.signal(signal.SIGABRT, self.handler)

    def aborted(self, number: int) -> None:
        """Ends a process that JAX has given up; takes the number of the signal."""
        del number
        self.alone(" (JAX's own message is above)")
        self.last("not all processes of this run came in time.")


ENDING = Ending()  # of this process


def ended(body: Callable[[], int]) -> int:
    """Returns the exit code of `body()`, for one of several processes.

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
        code = FAILED
    if jax.distributed.is_initialized() and not ENDING.agreed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def parting(code: int) -> int:
    """Returns process 0's exit code in every process: all end here, in agreement."""
    code = int(of_first(code))
    ENDING.agreed = True
    return code


def _divert_gloo() -> None:
    """Keeps gloo's notices, which it prints from C++, out of standard output."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    sys.stdout = ours
