"""Starts Python processes beside the tests, and waits for them."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HANG_SECONDS = 1200  # so that a hang ends; no slow or busy machine takes as long


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`(*args, **env) -> Popen` of this Python, with one CPU device by default."""
    cache = tmp_path_factory.mktemp("programs")
    with contextlib.ExitStack() as running:

        def started(*args, **env):
            process = subprocess.Popen(
                [sys.executable, *args],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                    "JAX_COMPILATION_CACHE_DIR": str(cache),
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
                    "JAX_NUM_CPU_DEVICES": "1",
                    **env,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            running.callback(process.kill)
            return process

        yield started


def signalled(
    name: str, function: str, files: pathlib.Path, count: int = 1
) -> tuple[str, ...]:
    """Returns what stands in place of `-m` before a command: see that module."""
    return ("-m", "support.signalled", name, function, str(files), str(count))


def address() -> str:
    """Returns localhost and a port that was free just now.

    It is below those that systems hand out for connections: nobody gets it by chance
    before the process that is told to use it.
    """
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return f"localhost:{port}"
    raise OSError("Of 100 ports none was free.")


def wait_for(folder: pathlib.Path, pattern: str, *processes: subprocess.Popen) -> None:
    """Returns once a file in the folder matches, which these processes are to make."""
    until = time.monotonic() + HANG_SECONDS
    while not list(folder.glob(pattern)):
        gone = [process for process in processes if process.poll() is not None]
        assert not gone, ended(*gone)
        assert time.monotonic() < until, f"there is no {pattern} in {folder}"
        time.sleep(0.05)


def ended(*processes):
    """Exit code, stdout and stderr of each."""
    said = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    return [(p.returncode, *text) for p, text in zip(processes, said, strict=True)]
