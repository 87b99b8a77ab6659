"""Finite derivatives of functions with vertical slopes: values, and what is zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax.rewrites import slopes

POINTS = jnp.array([0.0, 0.25, 4.0])
# name: (function, its derivative at POINTS, with zero where it is infinite)
STEEP = {
    "sqrt": (jnp.sqrt, [0, 1, 0.25]),
    "rsqrt": (jax.lax.rsqrt, [0, -4, -1 / 16]),
    "cbrt": (jnp.cbrt, [0, 0.25 ** (-2 / 3) / 3, 4 ** (-2 / 3) / 3]),
    "log": (jnp.log, [0, 4, 0.25]),
    "log1p": (lambda x: jnp.log1p(x - 1), [0, 4, 0.25]),
    "power": (lambda x: jnp.power(x, 0.5), [0, 1, 0.25]),
    "inverse": (lambda x: x**-1, [0, -16, -1 / 16]),
    "quotient": (lambda x: x / x, [0, 0, 0]),
    "of a square": (lambda x: jnp.sqrt(x**2), [0, 1, 1]),
    "jitted": (jax.jit(jnp.sqrt), [0, 1, 0.25]),
    "branch": (
        lambda x: jax.lax.cond(x.sum() > 0, jnp.sqrt, lambda x: x, x),
        [0, 1, 0.25],
    ),
    "scan": (
        lambda x: jax.lax.scan(lambda c, _: (jnp.sqrt(c), None), x, length=1)[0],
        [0, 1, 0.25],
    ),
}


@pytest.mark.parametrize("name", STEEP)
def test_a_slope_that_is_not_finite_is_zero(name):
    fun, expected = STEEP[name]
    safe = slopes.finite(fun)
    np.testing.assert_array_equal(safe(POINTS), fun(POINTS))

    def total(x):
        return jnp.where(jnp.isfinite(y := safe(x)), y, 0).sum()

    np.testing.assert_allclose(jax.grad(total)(POINTS), expected, rtol=1e-6)
    _, forwards = jax.jvp(safe, (POINTS,), (jnp.ones(3),))
    np.testing.assert_allclose(forwards, expected, rtol=1e-6)


def test_derivatives_of_derivatives_are_finite_as_well():
    twice = jax.vmap(jax.grad(jax.grad(slopes.finite(jnp.sqrt))))
    np.testing.assert_allclose(twice(POINTS), [0, -2, -1 / 32], rtol=1e-6)


def test_a_branch_that_is_not_taken_adds_nothing():
    """As in clipping by a norm of zero."""

    @slopes.finite
    def clipped(x):
        norm = jnp.sqrt(jnp.sum(x**2))
        return jnp.where(norm < 1, x, x / norm)

    np.testing.assert_array_equal(jax.jacobian(clipped)(jnp.zeros(2)), jnp.eye(2))


def test_integers_and_counts_stay_as_they_are():
    @slopes.finite
    def corrected(x, count):
        return x / (1 - 0.5**count), count + 1

    value, count = corrected(jnp.ones(2), jnp.array(1))
    np.testing.assert_array_equal(value, 2)
    assert count == 2 and count.dtype == jnp.int32
    derivative = jax.grad(lambda x: corrected(x, jnp.array(1))[0].sum())
    np.testing.assert_array_equal(derivative(jnp.ones(2)), 2)
