"""Branches of which one alone is computed, even where trials run side by side.

Under `vmap` a `lax.cond` whose predicate differs from trial to trial computes both
sides, always: what only few trials need, and they seldom, is then paid by all at every
step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_trial(predicate: jax.Array) -> jax.Array:
    """Says of a `[]` bool whether it holds for any trial under `vmap`, at any depth."""
    return predicate


@any_trial.def_vmap
def _(size: int, batched: list[bool], predicate: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched  # it is only called where the predicate is batched
    # Once more, since what is around may be mapped as well.
    return any_trial(jnp.any(predicate, axis=0)), False


def where(predicate: jax.Array, compute: Callable[[], Any], otherwise: Any) -> Any:
    """Returns `compute()` where a `[]` predicate holds, and `otherwise` elsewhere.

    Nothing is computed if the predicate holds for none of the trials side by side.

    Args:
      predicate: `[]` bool.
      compute: returns a pytree.
      otherwise: of the same structure, shapes and dtypes.
    """
    found = jax.lax.cond(any_trial(predicate), compute, lambda: otherwise)
    return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), found, otherwise)
