"""Where least squares may stop: what rounding and noise leave at the best fit."""

import jax.numpy as jnp
import pytest

from invertjax import candidates
from invertjax.attacks.gauss_newton import _floor


def test_the_floor_of_rounding_is_four_units_and_of_noise_its_chi_squared():
    """For an update of norm 2, 100 coordinates and 36 unknowns."""
    observed = {"w": jnp.full(100, 0.2)}
    guess = candidates.pixels((1, 6, 6, 1), jnp.array([0]))
    eps = float(jnp.finfo(jnp.float32).eps)
    exact = _floor(observed, guess, 0.0)
    assert float(exact) == pytest.approx(4 * eps**2, rel=1e-5)
    free = 100 - 36  # left by the fit: two standard deviations above the mean
    left = (free + 2 * (2 * free) ** 0.5) * 0.3**2
    noisy = _floor(observed, guess, 0.3)
    assert float(noisy) == pytest.approx(0.5 * left / 4, rel=1e-5)
