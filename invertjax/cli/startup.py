"""What every command line does first."""

import contextlib
import functools
import logging
import math
import os
import pathlib
import re
import sys
import warnings
import zlib
from typing import Any

import jax

from invertjax.driver import memory

_OF_CACHE = re.compile("Error (reading|writing) persistent compilation cache")
_ZSTD = b"\x28\xb5\x2f\xfd"  # how files begin that are compressed by it, not by zlib

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown


def quiet_and_cached() -> None:
    """Silences notices of no use here, and keeps compiled programs between runs.

    The cache is in XDG_CACHE_HOME, by default ~/.cache/invertjax; JAX's own variable
    JAX_COMPILATION_CACHE_DIR, where set, wins. There is none where nothing can be
    written, or where there is no home, as for many users of containers.
    """
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        _jax.config.update("jax_compilation_cache_dir", _cache())
    _jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    _say_of_damaged_programs_in_a_line()
    _one_device_per_core()


def _say_of_damaged_programs_in_a_line() -> None:
    """Turns JAX's warnings about a damaged compile cache into one line.

    What it cannot read it compiles anew, but leaves in its place: it is removed here.
    """
    shown, said = warnings.showwarning, set[str]()
    if getattr(shown, "of_startup", False):  # several commands in one process
        return

    def show(message: Any, *where: Any, **rest: Any) -> None:
        if not _OF_CACHE.match(str(message)):
            return shown(message, *where, **rest)
        folder = _jax.config.jax_compilation_cache_dir
        removed = _remove_damaged(pathlib.Path(folder))
        what = f"{removed} damaged programs in {folder}, which were removed"
        if not removed:
            what = f"programs in {folder} that cannot be read or written"
        if what not in said:
            print(f"note: compiled anew, for {what}.", file=sys.stderr)
        said.add(what)

    setattr(show, "of_startup", True)  # noqa: B010
    warnings.showwarning = show


def _remove_damaged(folder: pathlib.Path) -> int:
    """Removes programs that were cut off, as by a full disk, or changed."""
    count = 0
    for file in folder.glob("*-cache"):
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            try:
                whole = content[:4] == _ZSTD or zlib.decompress(content)
            except zlib.error:
                whole = False
            if not whole:
                file.unlink()
                count += 1
    return count


def _cache() -> str | None:
    """Returns the folder of compiled programs, which is there and can be written."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        cache = pathlib.Path(home) / "invertjax" / "jax"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home is a RuntimeError
        return None
    return str(cache) if os.access(cache, os.W_OK) else None


def _one_device_per_core() -> None:
    """Makes every core of the CPU a device, so that each has a trial of its own.

    Two trials on a core each take half the time of two trials, one after another, on
    two cores each. JAX_NUM_CPU_DEVICES and XLA_FLAGS, where they say otherwise, win.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        _jax.config.update("jax_num_cpu_devices", _cores())
    except RuntimeError:  # JAX has started: a command line called from Python code
        pass


def _cores() -> int:
    """Returns how many cores this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_limit() -> float | None:
    """Returns the bytes for each device of a host that they share; else None."""
    if jax.default_backend() != "cpu" or machine_memory() == math.inf:
        return None
    return memory.SHARE * machine_memory() / _jax.local_device_count()


@functools.cache
def machine_memory() -> float:
    """Returns the bytes of this machine's memory; infinite where it does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
