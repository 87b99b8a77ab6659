"""Gauss-Newton steps beside a few wrong equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax.solvers import robust

EQUATIONS, UNKNOWNS, WRONG = 200, 10, 10


def problem():
    """A matrix, the truth, and a right-hand side with a few gross errors."""
    normal = np.random.default_rng(0).standard_normal
    matrix, truth = normal((EQUATIONS, UNKNOWNS)), normal(UNKNOWNS)
    right = matrix @ truth
    right[:WRONG] += 10
    return matrix, truth, right


def least_squares():
    matrix, _, right = problem()
    return np.linalg.lstsq(matrix, right)[0]


def misfit(z):
    matrix, _, right = problem()
    product = jnp.matmul(matrix.astype(np.float32), z["x"], precision="highest")
    return {"residual": product - right.astype(np.float32)}


def error(z):
    return np.linalg.norm(z["x"] - problem()[1])


@functools.partial(jax.jit, static_argnames=("steps", "high"))
def polished(z, *, steps=16, high=np.inf):
    return robust.polish(
        misfit, z, steps=steps, project=lambda z: {"x": jnp.clip(z["x"], -high, high)}
    ).z


START = {"x": jnp.asarray(least_squares(), jnp.float32)}


def test_wrong_equations_lose_their_weight():
    # Where it turns linear an error of 10 pulls like one of 0.3 of the mean square.
    pull = 0.3 * np.sqrt(WRONG / EQUATIONS)
    assert error(START) > 0.3
    assert error(polished(START)) < 2 * pull * error(START)


def test_the_reweighted_minimum_is_stationary():
    z = polished(START, steps=40)
    residual = np.asarray(misfit(z)["residual"], np.float64)
    width = 0.3 * np.sqrt(np.mean(residual**2))
    slope = problem()[0].T @ (residual / np.hypot(residual / width, 1))
    unweighted = problem()[0].T @ residual
    assert np.linalg.norm(slope) < 1e-3 * np.linalg.norm(unweighted)


def test_steps_are_projected():
    high = 0.5
    z = polished(START, high=high)["x"]
    assert (abs(z) <= high).all() and (abs(z) == high).any()


def test_no_steps_and_an_exact_fit_change_nothing():
    np.testing.assert_array_equal(polished(START, steps=0)["x"], START["x"])
    zero = robust.polish(lambda z: 0.0 * z, jnp.ones(3), steps=2).z
    np.testing.assert_array_equal(zero, jnp.ones(3))


def test_an_iterate_that_is_not_finite_is_not_taken():
    z = robust.polish(lambda z: jnp.log(z), jnp.array([-1.0, 2.0]), steps=2).z
    np.testing.assert_array_equal(z, jnp.array([-1.0, 2.0]))


@pytest.mark.parametrize(
    ("residual", "wanted"),
    [
        (np.ones(100), 1.0),
        (np.eye(100)[0], 0.01),
        (np.zeros(100), 1.0),
        (np.random.default_rng(0).standard_normal(100_000), 2 / np.pi),
    ],
)
def test_tail(residual, wanted):
    half = {"a": residual[:50], "b": residual[50:]}
    assert robust.tail(half) == pytest.approx(wanted, rel=0.01)


def test_it_returns_the_residuals_of_both_ends():
    found = jax.jit(lambda z: robust.polish(misfit, z, steps=3))(START)
    for z, residual in ((START, found.before), (found.z, found.after)):
        expected = misfit(z)["residual"]
        np.testing.assert_allclose(residual, expected, rtol=1e-4, atol=1e-4)
