"""Strict JAX for every test: no key used twice, no silent rank promotion.

One CPU device, on any machine; tests of several start processes of their own.
"""

import gc
import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # before JAX reads it

import jax  # noqa: E402
import pytest  # noqa: E402

# What JAX traces stays cached: collecting it over and over took a quarter of the time.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Most of the time of most tests is compiling. Long tests run what users run.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def pytest_configure(config):
    if config.option.markexpr == "not slow":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK_TO_COMPILE}".strip()


@pytest.fixture
def x64():
    """Float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
