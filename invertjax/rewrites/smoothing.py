"""Smooth activations for ReLU, in any model: a homotopy for second-order attacks.

The gradient of a ReLU network jumps wherever a unit turns on or off, and least squares
stops at the jumps. With softplus(s x) / s in the place of every relu it is smooth, and
tends to the relu's as the sharpness s grows (Chen and Mangasarian 1996, "A Class of
Smoothing Functions", section 2).

    loss_fn = smoothing.softened(loss_fn, sharpness)
    client = clients.gradient(loss_fn)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from invertjax.rewrites import equations, relus


def softened(
    fun: Callable[..., Any], sharpness: float | jax.Array
) -> Callable[..., Any]:
    """Computes `fun` with softplus(s x) / s in the place of every relu.

    Each call traces `fun` and replaces `jax.nn.relu` and `jnp.maximum(x, 0)`, also
    inside `jit` and `checkpoint`. What is inside loops, branches and other functions
    with derivative rules of their own stays as it is. A maximum with zero that is no
    activation (flax's group norm takes one of its variance) is replaced as well.

    Args:
      fun: any function of pytrees that `jax.grad` could trace. Rewrite a loss before it
        is differentiated: a gradient has no relu any more.
      sharpness: s > 0, may be traced; infinity gives `fun` itself.
    """

    @functools.wraps(fun)
    def soft(*args: Any, **kwargs: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(
            lambda: fun(*args, **kwargs), return_shape=True
        )()
        leaves = equations.inlined(jaxpr, (), _softened(_softplus(sharpness)))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return soft


def has_relu(fun: Callable[..., Any], *args: Any) -> bool:
    """Says whether `softened` finds anything to replace in `fun(*args)`.

    The arguments may be `jax.ShapeDtypeStruct`s: nothing is computed.
    """
    return _contains_relu(jax.make_jaxpr(fun)(*args))


def _softplus(sharpness: float | jax.Array) -> Callable[[jax.Array], jax.Array]:
    sharp = jnp.isinf(sharpness)
    scale = jnp.where(sharp, 1.0, jnp.asarray(sharpness))  # infinity times zero is NaN

    def activation(x: jax.Array) -> jax.Array:
        s = scale.astype(x.dtype)
        return jnp.where(sharp, jax.nn.relu(x), _logarithm(s * x) / s)

    return activation


@jax.custom_jvp
def _logarithm(x: jax.Array) -> jax.Array:
    """Returns log(1 + exp(x)). `jax.nn.softplus` is the same, with derivatives whose
    many cases, all of them for infinite arguments, take twice as long to compile."""
    return jax.nn.relu(x) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_logarithm.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (along,) = primals, tangents
    return _logarithm(x), jax.nn.sigmoid(x) * along


def _softened(activation: Callable[[jax.Array], jax.Array]) -> equations.Step:
    """Returns how equations are computed, with `activation` for relus."""

    def step(eqn: core.JaxprEqn, given: list[Any]) -> list[Any]:
        if relus.is_relu(eqn):
            return [activation(given[relus.operand(eqn)])]
        body = equations.called(eqn)
        if body is not None and _contains_relu(body):
            return equations.inlined(body, given, step)
        return equations.bind(eqn, given)

    return step


def _contains_relu(body: Any) -> bool:
    return any(
        relus.is_relu(eqn) or (inner is not None and _contains_relu(inner))
        for eqn in body.eqns
        for inner in [equations.called(eqn)]
    )
