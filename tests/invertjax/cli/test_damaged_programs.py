"""Damaged programs of the compile cache: one line, and compiled anew."""

import sys

import pytest
from support import processes

PROGRAM = """
import sys, jax, jax.numpy as jnp
from invertjax.cli import startup
startup.quiet_and_cached()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
print(float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((3, 3)))))
"""

start = processes.start  # a fixture


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 4]) + content[61:]


@pytest.mark.skipif(sys.platform == "win32", reason="paths of the cache")
def test_damaged_programs_are_compiled_anew_and_said_in_a_line(start, tmp_path):
    def run() -> tuple[int, str, str]:
        process = start("-c", PROGRAM, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
        out, err = process.communicate(timeout=processes.HANG_SECONDS)
        return process.returncode, out, err

    whole = run()
    assert whole == (0, "27.0\n", "")
    files = sorted(tmp_path.glob("*-cache"))
    for i, file in enumerate(files):
        file.write_bytes([cut, flipped][i % 2](file.read_bytes()))
    code, out, err = run()
    assert (code, out) == whole[:2] and err.count("\n") == 1
    said = f"note: compiled anew, for {len(files)} damaged programs in {tmp_path}"
    assert err.startswith(said)
    assert run() == whole  # they were removed, and are there again
