"""Functions that run once, compiled with little optimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax.driver import Cache, quick


@pytest.fixture
def options(monkeypatch):
    """Sets what quick programs are compiled with."""

    def set_to(**found):
        quick._options.cache_clear()
        monkeypatch.setattr(quick, "OPTIONS", found)

    yield set_to
    quick._options.cache_clear()


@pytest.fixture
def compiled_with(monkeypatch):
    """Options that `jax.jit` was given, in order."""
    seen, jit = [], jax.jit

    def watched(function, **given):
        seen.append(given.get("compiler_options"))
        return jit(function, **given)

    monkeypatch.setattr(jax, "jit", watched)
    return seen


def weights(key):
    return {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}


def test_values_are_those_of_the_function(compiled_with):
    made = quick.jit(weights)(jax.random.key(0))
    np.testing.assert_allclose(
        made["kernel"], weights(jax.random.key(0))["kernel"], rtol=1e-5
    )
    assert compiled_with[-1] == {"xla_backend_optimization_level": 0}


def test_an_xla_without_the_option_compiles_as_ever(options, compiled_with):
    options(xla_option_of_another_time=0)
    made = quick.jit(weights)(jax.random.key(0))
    np.testing.assert_array_equal(made["bias"], np.zeros(3))
    assert compiled_with[-1] is None


def test_other_backends_are_given_no_options(compiled_with):
    assert quick._options("gpu") is None and quick._options("tpu") is None
    assert not compiled_with


def test_it_may_be_called_in_what_is_compiled_or_mapped():
    made = quick.jit(weights)
    keys = jax.random.split(jax.random.key(0), 2)
    assert jax.jit(jax.vmap(made))(keys)["kernel"].shape == (2, 4, 3)
    assert jax.eval_shape(made, jax.random.key(0))["bias"].shape == (3,)


def test_a_cache_compiles_briefly_where_it_is_asked_to(compiled_with):
    cache = Cache()
    for briefly in (False, True, True):
        double = cache.jit(
            ("double", briefly), lambda: lambda x: 2 * x, briefly=briefly
        )
        assert double(jnp.ones(())) == 2
    assert compiled_with[0] is None
    assert compiled_with[-1] == {"xla_backend_optimization_level": 0}


def test_what_many_places_call_is_traced_once():
    traced = []

    def square(x):
        traced.append(1)
        return x * x

    once = quick.traced_once(square)
    found = jax.jit(lambda x: once(x) + jax.grad(once)(x) + once(2 * x))(jnp.ones(()))
    assert found == 1 + 2 + 4 and len(traced) == 1
