"""Strict JAX for every test: no key used twice, no silent rank promotion.

One CPU device, on any machine; tests of several start processes of their own.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # before JAX reads it

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
