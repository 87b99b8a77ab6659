"""Strict JAX for every test: no key used twice, no silent rank promotion.

One CPU device, on any machine; tests of several start processes of their own.
"""

import ctypes
import gc
import mmap
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # before JAX reads it

import jax  # noqa: E402
import jaxlib  # noqa: E402
import pytest  # noqa: E402

# What JAX traces stays cached: collecting it over and over took a quarter of the time.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Most of the time of most tests is compiling. Long tests run what users run.
QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def _known(names: Iterable[str]) -> list[str]:
    """Returns the flags that this XLA has: at one that it has not, it aborts."""
    known = set()
    for library in pathlib.Path(jaxlib.__file__).parent.glob("*.so"):
        with (
            open(library, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary,
        ):
            known |= {name for name in names if binary.find(name.encode()) >= 0}
    return [name for name in names if name in known]


# Tests neither read nor fill the programs that commands keep in the home.
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    if PROGRAMS not in os.environ:
        os.environ[PROGRAMS] = folder = tempfile.mkdtemp(prefix="invertjax-programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if config.option.markexpr == "not slow":
        flags = [
            f"--{name}={QUICK_TO_COMPILE[name]}" for name in _known(QUICK_TO_COMPILE)
        ]
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])


# JAX keeps whatever it has traced and compiled, 4.5 GB at the end: few tests share it.
GROWTH = 1e9  # bytes, after which all of it is forgotten
_least = [0]  # bytes that the process held when it had just forgotten


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text("utf-8").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _forget() -> None:
    jax.clear_caches()
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # else it keeps what is freed for itself
        libc.malloc_trim(0)
    _least[0] = _resident()


@pytest.fixture(autouse=True)
def small_in_memory():
    """After every test; below 3 GB in all, where a test takes no more than 1 GB."""
    yield
    if _resident() > _least[0] + GROWTH:
        _forget()


@pytest.fixture(scope="session", autouse=True)
def no_program_is_held():
    """What a cache of ours holds on to grows with every test of every module."""
    yield
    _forget()
    held = len(jax.devices()[0].client.live_executables())
    assert held < 100, f"{held} compiled programs are held when all tests are done."


@pytest.fixture
def x64():
    """Float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
