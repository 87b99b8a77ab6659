"""Finite derivatives for functions with vertical slopes, such as optimisers.

Adam divides by the root of its second moment. Where a gradient is exactly zero, as it
is for every weight of a pixel that is zero, the root has an infinite slope, the moment
the slope zero, and their product is NaN: one black pixel, and an attack on the client
has no gradient at all. A partial derivative that is not finite is taken to be zero
here. The chain rule then says what the limit says wherever the inner slope is zero, as
that of a square at zero is.

    update = slopes.finite(optimizer.update)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from invertjax.rewrites import equations

_STEEP = frozenset(
    {"sqrt", "rsqrt", "cbrt", "log", "log1p", "pow", "integer_pow", "div", "atan2"}
)


def finite(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Computes `fun`, with zero for every partial derivative that is not finite.

    These are the derivatives of roots, logarithms, powers and quotients, also inside
    `jit`, `scan`, `while_loop` and `cond`; what has a derivative rule of its own keeps
    it. The values are those of `fun`, and so are all derivatives where these are
    finite, in forward and reverse mode and of any order.

    Args:
      fun: any function of pytrees that `jax.grad` could trace.
    """
    return _REWRITING.function(fun)


def _is_steep(eqn: core.JaxprEqn) -> bool:
    aval: Any = eqn.outvars[0].aval
    floats = jnp.issubdtype(aval.dtype, jnp.floating)
    return eqn.primitive.name in _STEEP and floats


def _with_finite_slopes(eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
    def value(*operands: jax.Array) -> jax.Array:
        return eqn.primitive.bind(*operands, **eqn.params)

    safe = jax.custom_jvp(value)

    @safe.defjvp
    def rule(operands: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        along = [
            _partial(value, operands, i) * tangent
            for i, tangent in enumerate(tangents)
            if jnp.issubdtype(operands[i].dtype, jnp.inexact)
        ]
        return safe(*operands), functools.reduce(jnp.add, along)

    return equations.of(safe, eqn)


def _partial(value: Callable[..., jax.Array], operands: Any, which: int) -> jax.Array:
    """Returns the derivative with respect to an operand, or zero."""

    def slope(operands: Any) -> jax.Array:
        def along(operand: jax.Array) -> jax.Array:
            return value(*operands[:which], operand, *operands[which + 1 :])

        one = jnp.ones_like(operands[which])
        return jax.jvp(along, (operands[which],), (one,))[1]

    good = jnp.isfinite(slope(jax.lax.stop_gradient(operands)))
    # All of these functions have finite slopes of any order at one. Without it, the
    # derivative of this derivative would be zero times infinity again.
    there = [
        jnp.where(good, operand, jnp.ones_like(operand))
        if operand.shape == good.shape  # a literal may be a scalar beside an array
        else operand
        for operand in operands
    ]
    return jnp.where(good, slope(tuple(there)), 0)


_REWRITING = equations.Rewriting(_is_steep, _with_finite_slopes)
