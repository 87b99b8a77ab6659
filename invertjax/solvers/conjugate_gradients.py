"""Conjugate gradients for systems that are only known by their products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


class Solution(NamedTuple):
    """A step, the iterations that it took, and whether they were enough."""

    step: jax.Array
    used: jax.Array
    solved: jax.Array


def conjugate_gradients(
    product: Callable[[jax.Array], jax.Array],
    right: jax.Array,
    precondition: Callable[[jax.Array], jax.Array],
    iterations: jax.typing.ArrayLike,
    tolerance: float,
) -> Solution:
    """Solves `product(x) = right` for a symmetric positive definite product.

    Hestenes and Stiefel (1952). It starts at zero, so that it has a descent step of the
    quadratic even where its budget ends it.

    Args:
      product: `[d] -> [d]`.
      right: `[d]`.
      precondition: `[d] -> [d]`, about the inverse of `product`, symmetric as well.
      iterations: at most.
      tolerance: it stops at this share of the norm of `right`.
    """
    enough = tolerance * jnp.linalg.norm(right)

    def going(carry: Any) -> jax.Array:
        n, _, residual, _, inner = carry
        norm = jnp.linalg.norm(residual)
        return (n < iterations) & (norm > enough) & jnp.isfinite(inner)

    def iterate(carry: Any) -> Any:
        n, x, residual, direction, inner = carry
        image = product(direction)
        length = inner / dot(direction, image)
        x = x + length * direction
        residual = residual - length * image
        preconditioned = precondition(residual)
        new = dot(residual, preconditioned)
        direction = preconditioned + new / inner * direction
        return n + 1, x, residual, direction, new

    first = precondition(right)
    start = (jnp.array(0), jnp.zeros_like(right), right, first, dot(right, first))
    n, x, residual, *_ = jax.lax.while_loop(going, iterate, start)
    return Solution(x, n, jnp.linalg.norm(residual) <= enough)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the inner product of two vectors, in full precision."""
    return jnp.vdot(a, b, precision=HIGHEST)
