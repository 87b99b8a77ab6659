"""Sparse updates."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from invertjax.base import Params, Update
from invertjax.defenses import ranges


def prune(
    share: jax.typing.ArrayLike, *, whole: bool = False
) -> optax.GradientTransformation:
    """Sets the coordinates of least magnitude to zero, a share of every leaf.

    Of the n coordinates of a leaf, exactly round(share n) become zero: those with the
    smallest |g|, among equal ones those that come first. Lin et al. (2018), "Deep
    Gradient Compression", section 3, and, with `whole`, Aji and Heafield (2017),
    "Sparse Communication for Distributed Gradient Descent", both without their memory
    (`error_feedback` adds it); tried as a defense by Zhu et al. (2019), section 5.2. No
    guarantee: an attacker sees the mask.

    Args:
      share: `[]`, in [0, 1]; 1 leaves nothing. Studies sweep .5 to .999. The count is
        rounded in float32, exact up to 2^23 coordinates.
      whole: rank all coordinates of the update together instead of leaf by leaf, so
        that leaves with a small gradient vanish first.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("share", share, at_least=0, at_most=1)

    def leaf_pruned(leaf: Any, _: Any) -> jax.Array:
        return _masked(largest(leaf, share), leaf)

    def whole_pruned(updates: Update, params: Params | None = None) -> Update:
        del params
        return jax.tree.map(_masked, largest(updates, share), updates)

    if whole:
        return optax.stateless(whole_pruned)
    return optax.stateless_with_tree_map(leaf_pruned)


def largest(updates: Update, share: jax.typing.ArrayLike) -> Update:
    """Returns booleans like `updates`, false for the `share` of least magnitude."""
    magnitudes, restore = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda leaf: jnp.abs(jax.lax.stop_gradient(leaf)), updates)
    )
    ascending = jnp.argsort(magnitudes, stable=True)
    positions = jnp.arange(magnitudes.size)
    rank = jnp.zeros_like(ascending).at[ascending].set(positions)
    least = jnp.round(jnp.asarray(share, jnp.float32) * magnitudes.size)
    kept = restore((rank >= least).astype(magnitudes.dtype))
    return jax.tree.map(lambda leaf: leaf > 0, kept)


def _masked(kept: jax.Array, leaf: jax.Array) -> jax.Array:
    return jnp.where(kept, leaf, 0)
