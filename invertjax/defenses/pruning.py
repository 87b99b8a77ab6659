"""Sparse updates."""

import jax
import jax.numpy as jnp
import optax

from invertjax.defenses import ranges


def prune(share: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Sets the coordinates of least magnitude to zero, a share of every leaf.

    Of the n coordinates of a leaf, exactly round(share n) become zero: those with the
    smallest |g|, among equal ones those that come first. Aji and Heafield (2017),
    "Sparse Communication for Distributed Gradient Descent", without their residual
    and leaf by leaf; tried as a defense by Zhu et al. (2019), section 5.2. No
    guarantee: an attacker sees the mask.

    Args:
      share: `[]`, in [0, 1]; 1 leaves nothing. Studies sweep .5 to .999. The count is
        rounded in float32, exact for leaves up to 2^23 coordinates.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("share", share, at_least=0, at_most=1)
    share = jnp.asarray(share, jnp.float32)

    def leaf_pruned(leaf, _):
        magnitude = jnp.abs(jax.lax.stop_gradient(leaf)).ravel()
        ascending = jnp.argsort(magnitude, stable=True)
        positions = jnp.arange(leaf.size)
        rank = jnp.zeros_like(ascending).at[ascending].set(positions)
        kept = rank >= jnp.round(share * leaf.size)
        return jnp.where(kept.reshape(leaf.shape), leaf, 0)

    return optax.stateless_with_tree_map(leaf_pruned)
