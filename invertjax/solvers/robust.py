"""Gauss-Newton steps that a few wrong equations do not spoil.

Where a ReLU network's attack ends, some units are on that should be off. Least squares
bends the whole image to lessen their few large residuals. Here the residuals keep the
objective sum of width^2 (sqrt(1 + (r / width)^2) - 1), quadratic where they are small
and linear where they are large, by iteratively reweighted least squares (Holland and
Welsch 1977, "Robust Regression Using Iteratively Reweighted Least-Squares").
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from invertjax.base import Point
from invertjax.solvers.conjugate_gradients import conjugate_gradients


class Polished(NamedTuple):
    """Where `polish` ended, and the residuals there and where it began, flat.

    They come from the one residual that its loop compiles: each further call in the
    same program would be compiled once more.
    """

    z: Point
    before: jax.Array
    after: jax.Array


def polish(
    residual_fn: Callable,
    z: Point,
    *,
    steps: int = 16,
    project: Callable[[Point], Point] = lambda z: z,
    damping: float = 1e-3,
    width: float = 0.3,
    iterations: int = 200,
    tolerance: float = 1e-3,
) -> Polished:
    """Takes `steps` steps, whether they lessen the objective or not.

    Every unit that turns on or off makes the residual jump, so that it may grow on the
    way to the right units. A step to an iterate that is not finite is not taken.

    Args:
      residual_fn: `z -> pytree`.
      z: where it starts.
      steps: reweightings.
      project: `z -> z`, after every step.
      damping: relative to the mean diagonal of J^T W J.
      width: where the objective turns linear, in root mean squares of the residual.
      iterations: of conjugate gradients in a step.
      tolerance: conjugate gradients stop at this share of the gradient's norm.
    """
    start, unravel = ravel_pytree(z)

    def residual(v: jax.Array) -> jax.Array:
        return ravel_pytree(residual_fn(unravel(v)))[0]

    def step(i: jax.Array, carry: Any) -> Any:
        flat, before, _ = carry
        here, push = jax.linearize(residual, flat)
        pull = jax.linear_transpose(push, flat)
        weight = _weight(here, width)
        # As in `levenberg_marquardt`: the trace of J^T W J in expectation.
        signs = jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype)
        shift = damping * jnp.sum(weight * push(signs) ** 2) / flat.size

        def product(v: jax.Array) -> jax.Array:
            return pull(weight * push(v))[0] + shift * v

        right = -pull(weight * here)[0]
        most = jnp.where(i < steps, iterations, 0)  # the last one only looks
        found = conjugate_gradients(product, right, lambda v: v, most, tolerance)
        there = ravel_pytree(project(unravel(flat + found.step)))[0]
        moves = (i < steps) & jnp.all(jnp.isfinite(there))
        return jnp.where(moves, there, flat), jnp.where(i == 0, here, before), here

    none = jax.eval_shape(residual, start)
    none = jnp.zeros(none.shape, none.dtype)
    found, before, after = jax.lax.fori_loop(0, steps + 1, step, (start, none, none))
    return Polished(unravel(found), before, after)


def tail(residual: Any) -> jax.Array:
    """Returns mean(|r|)^2 / mean(r^2): 2/pi if Gaussian, 1 if zero.

    It is near 0 where a few coordinates make the whole residual.
    """
    flat, _ = ravel_pytree(residual)
    square = jnp.mean(flat**2)
    share = jnp.mean(jnp.abs(flat)) ** 2 / jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, share, 1.0)


def _weight(residual: jax.Array, width: float) -> jax.Array:
    scale = width * jnp.sqrt(jnp.mean(residual**2))
    scale = jnp.maximum(scale, jnp.finfo(residual.dtype).tiny ** 0.5)
    return scale / jnp.hypot(residual, scale)
