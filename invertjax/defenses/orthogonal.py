"""Noise at right angles to the update."""

import jax
import jax.numpy as jnp
import optax

from invertjax import trees
from invertjax.base import Key, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.drawing import keyed


def orthogonal_noise(
    key: Key, strength: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Adds to every leaf g a random vector orthogonal to it, of length `strength` |g|.

    The cosine between what is shared and g is 1 / sqrt(1 + strength^2), exactly; its
    projection on g is g: to first order a step trains as before. In the spirit of Zhang
    et al. (2025), who share the orthogonal vector alone (`censor`). A leaf of one
    coordinate has nothing orthogonal and is shared as it is.

    No guarantee: an attacker knows the length of every leaf's gradient, and noise of
    known strength is matched as Gaussian noise is.

    Args:
      key: consumed. Every leaf and every call has its own draw.
      strength: `[]`, >= 0, relative to the norm of the leaf.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("strength", strength, at_least=0)

    def noisy(key: Key, updates: Update, params: Params) -> Update:
        del params
        found = jax.tree.map(
            lambda leaf, across: leaf + jnp.asarray(strength, across.dtype) * across,
            trees.wide(updates),
            perpendicular(key, updates),
        )
        return trees.rounded(found, updates)

    return keyed(key, noisy)


def perpendicular(key: Key, updates: Update) -> Update:
    """Draws for every leaf a random vector that is orthogonal to it and as long.

    Uniform on the sphere of such vectors, in float32 or wider. Zero for a leaf of one
    coordinate, for which there is none, and for a zero leaf.
    """
    wide = trees.wide(updates)
    return jax.tree.map(_perpendicular, optax.tree.random_like(key, wide), wide)


def _perpendicular(draw: jax.Array, leaf: jax.Array) -> jax.Array:
    if leaf.size < 2:
        return jnp.zeros_like(leaf)
    leaf, scale = trees.scaled(leaf)
    squares = _dot(leaf, leaf)
    across = draw - _dot(draw, leaf) / jnp.where(squares > 0, squares, 1) * leaf
    lengths = _dot(across, across)
    # The root of zero has no derivative, not even in the branch that is not taken.
    ratio = jnp.where(squares > 0, squares, 1) / jnp.where(lengths > 0, lengths, 1)
    return jnp.where((squares > 0) & (lengths > 0), jnp.sqrt(ratio), 0) / scale * across


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST)
