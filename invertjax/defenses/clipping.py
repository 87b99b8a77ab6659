"""Bounds on the norm of an update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from invertjax import trees
from invertjax.base import Update
from invertjax.defenses import ranges


def clip(max_norm: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Scales an update g down to norm `max_norm` if it is longer, g min(1, c / |g|).

    The norm is that of the whole tree. Pascanu et al. (2013), section 3.2; Geyer et al.
    (2017), Algorithm 1, for clients. No protection by itself: attacks that compare
    directions do not see it. Equal to `optax.clip_by_global_norm`, and unlike that
    also differentiable where the update is zero, and right in any dtype: computed in
    float32 or wider, and narrower leaves are rounded towards zero, so that the norm of
    what is shared is at most `max_norm` there, too.

    Args:
      max_norm: `[]`, > 0.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("max_norm", max_norm, above=0)
    return optax.stateless(lambda updates, _: _clipped(updates, max_norm))


def clip_layers(max_norm: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Scales every leaf on its own down to norm `max_norm` if it is longer.

    The norm of n leaves is then at most sqrt(n) max_norm. McMahan et al. (2018),
    "Learning Differentially Private Recurrent Language Models", section 2, per-layer
    clipping; there a layer may have a bound of its own. No protection by itself: within
    a leaf the direction is kept, so that an attack that compares leaf by leaf does not
    see it; one that compares whole updates clips its guess, too.

    Args:
      max_norm: `[]`, > 0, of every leaf.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("max_norm", max_norm, above=0)
    return optax.stateless_with_tree_map(lambda leaf, _: _clipped(leaf, max_norm))


def _clipped(tree: Any, max_norm: jax.typing.ArrayLike) -> Update:
    small, scale = trees.scaled(tree)
    squared = trees.total(jax.tree.map(lambda leaf: jnp.sum(leaf**2), small))
    # No scaled tree is as long as the most that the bound can be here.
    most = 2.0 ** (jnp.finfo(squared.dtype).maxexp // 2 - 1)
    bound = jnp.minimum(jnp.asarray(max_norm, squared.dtype) * scale, most)
    # The maximum is there because the root of zero has no derivative, not even in the
    # branch that is not taken.
    factor = bound * jax.lax.rsqrt(jnp.maximum(squared, bound**2))
    factor = jnp.where(squared > bound**2, factor, 1)

    def one(leaf: jax.Array, wide: jax.Array) -> jax.Array:
        return _rounded_down(wide * factor.astype(wide.dtype), leaf.dtype)

    return jax.tree.map(one, tree, trees.wide(tree))


def _rounded_down(wide: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rounds towards zero, since rounding up would exceed the bound again.

    To derivatives it is a plain cast.
    """
    near = wide.astype(dtype)
    if near.dtype == wide.dtype:
        return near
    fixed = jax.lax.stop_gradient(near)
    beyond = jnp.abs(fixed.astype(wide.dtype)) > jnp.abs(wide)
    below = jnp.nextafter(fixed, jnp.zeros_like(fixed))
    return near - jnp.where(beyond, fixed - below, 0)
