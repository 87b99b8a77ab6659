"""Conjugate gradients by themselves: d steps solve d unknowns, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax.solvers.conjugate_gradients import conjugate_gradients

SPECTRUM = np.array([1.0, 4.0, 20.0, 100.0], np.float32)


def system():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    matrix = jnp.asarray(rotation * SPECTRUM @ rotation.T, jnp.float32)
    return matrix, jnp.asarray(rotation.sum(1), jnp.float32)


def test_as_many_steps_as_eigenvalues_solve_it():
    """Without conjugate directions, descent needs some hundred steps: (99/101)^n."""
    matrix, right = system()
    found = jax.jit(
        lambda b: conjugate_gradients(lambda v: matrix @ v, b, lambda v: v, 9, 1e-4)
    )(right)
    assert found.solved and found.used == 4
    np.testing.assert_allclose(found.step, np.linalg.solve(matrix, right), rtol=1e-2)


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_a_budget_too_small_says_so(iterations):
    matrix, right = system()
    found = conjugate_gradients(
        lambda v: matrix @ v, right, lambda v: v, iterations, 1e-4
    )
    assert not found.solved and found.used == iterations
    # What is left is orthogonal to all directions tried, and so to the step.
    residual = right - matrix @ found.step
    assert abs(jnp.vdot(residual, found.step)) <= 1e-4 * jnp.vdot(right, right)


def test_the_inverse_as_preconditioner_takes_one_step():
    matrix, right = system()
    inverse = jnp.linalg.inv(matrix)
    found = conjugate_gradients(
        lambda v: matrix @ v, right, lambda v: inverse @ v, 9, 1e-3
    )
    assert found.solved and found.used == 1
