"""Starts Python processes beside the tests, and waits for them."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 30  # for the others to stop, as the README promises


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


def address():
    """Of a port that was free just now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def ended(*processes):
    """Exit code, stdout and stderr of each."""
    said = [process.communicate(timeout=4 * SECONDS) for process in processes]
    return [(p.returncode, *text) for p, text in zip(processes, said, strict=True)]
