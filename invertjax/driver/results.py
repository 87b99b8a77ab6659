"""What the results of several restarts come to: the best of them, or a failure."""

import warnings

import jax
import jax.numpy as jnp

from invertjax.base import Result


def best(results: Result) -> Result:
    """Chooses the best restart of every target, `[N]` of `[N, R]`, by the objective.

    An attacker sees the objective, and never the truth.
    """
    loss = jnp.where(jnp.isnan(results.loss), jnp.inf, results.loss)
    chosen = jnp.argmin(loss, axis=1)

    def pick(leaf: jax.Array) -> jax.Array:
        return jax.vmap(lambda row, index: row[index])(leaf, chosen)

    return jax.tree.map(pick, results)


def failed(results: Result) -> jax.Array:
    """Says of every target, `[N]`, whether no restart ever had a finite objective."""
    return ~jnp.any(jnp.isfinite(results.loss), axis=1)


def warn_if_failed(results: Result) -> None:
    """Warns the caller's caller where no restart of a target came to anything."""
    if jnp.any(failed(results)):
        warnings.warn(
            "The result is no reconstruction: in no restart were the objective and its "
            "gradient finite, not even at the start.",
            stacklevel=3,
        )
