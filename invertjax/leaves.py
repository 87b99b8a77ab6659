"""Trees of params and updates: only floats are trained and shared."""

from typing import Any

import jax
import jax.numpy as jnp


def floats(tree: Any) -> Any:
    """Returns a pytree with None for leaves that are no floats, such as counters.

    They have no gradient, so that an update does not hold them.
    """
    return jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, tree)


def merged(floats: Any, whole: Any) -> Any:
    """Returns a pytree with these floats, and with what else the whole one holds."""
    return jax.tree.map(
        lambda mine, other: other if mine is None else mine,
        floats,
        whole,
        is_leaf=lambda leaf: leaf is None,
    )


def all_floats(tree: Any) -> bool:
    """Returns whether a pytree holds nothing but floats."""
    return all(map(_is_float, jax.tree.leaves(tree)))


def _is_float(leaf: Any) -> bool:
    # `jnp.result_type` knows neither PRNG keys nor the float0 of a gradient.
    dtype = getattr(leaf, "dtype", None)
    dtype = jnp.result_type(leaf) if dtype is None else dtype
    return jnp.issubdtype(dtype, jnp.inexact)
