"""Randomly sparse updates."""

import jax
import jax.numpy as jnp
import optax

from invertjax.base import Key, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.drawing import keyed


def sparsify(
    key: Key, share: jax.typing.ArrayLike, *, unbiased: bool = True
) -> optax.GradientTransformation:
    """Sets every coordinate to zero with probability `share`, whatever its value.

    What is kept is divided by 1 - share, so that the mean over the draws is the update;
    the variance of a coordinate is then g^2 share / (1 - share). Wangni et al. (2018),
    "Gradient Sparsification for Communication-Efficient Distributed Optimization",
    section 3, with equal probabilities; Konecny et al. (2016), "Federated Learning:
    Strategies for Improving Communication Efficiency", section 3, subsampling. No
    guarantee: an attacker sees the mask, and behind it exact coordinates of the update.

    Args:
      key: consumed. Every leaf and every call has its own draw.
      share: `[]`, in [0, 1]; 1 leaves nothing, and is not unbiased.
      unbiased: divide by 1 - share.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("share", share, at_least=0, at_most=1)
    share = jnp.asarray(share, jnp.float32)
    scale = 1 / jnp.where(share < 1, 1 - share, 1) if unbiased else jnp.ones_like(share)

    def sparse(key: Key, updates: Update, params: Params) -> Update:
        del params
        # Not drawn in the leaf's dtype: bfloat16 draws have 8 bits.
        draws = optax.tree.random_like(
            key, updates, jax.random.uniform, dtype=jnp.float32
        )
        return jax.tree.map(leaf_sparse, draws, updates)

    def leaf_sparse(draw: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(draw >= share, (leaf * scale).astype(leaf.dtype), 0)

    return keyed(key, sparse)
