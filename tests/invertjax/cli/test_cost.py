"""Operations and equations, counted; what is made of them, in words."""

import jax
import jax.numpy as jnp
import pytest

from invertjax.cli import cost


def test_backends_that_do_not_count_compile(monkeypatch):
    """As plugins do where JAX_PLATFORMS leaves the CPU out."""

    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    product = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda lowered: None)
    found, equations = cost._counted(lambda a: a @ a, product)
    assert equations == 1 and found == pytest.approx(2 * 8**3)
