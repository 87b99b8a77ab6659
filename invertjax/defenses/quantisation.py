"""Updates of few bits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invertjax.base import Key, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.drawing import keyed


def quantise(bits: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Rounds every coordinate to the nearest of 2^bits - 1 levels, evenly spaced.

    With s = max |g| of a leaf and L = 2^(bits-1) - 1: round(L g / s) s / L, which is
    at most s / (2 L) off, and itself when done twice. Symmetric and uniform, as the
    int8 format in Jacob et al. (2018), section 2.1, with zero point 0 and one scale a
    leaf. Deterministic, hence biased. No guarantee. Its derivative is zero almost
    everywhere, but for that through s: an adaptive attacker needs a surrogate.

    Args:
      bits: `[]`, 2 to 32, need not be whole. 2 has the levels -s, 0, s; for one bit
        take `sign`. From 25 bits on, float32 rounds coarser than the levels.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("bits", bits, at_least=2, at_most=32)
    return optax.stateless_with_tree_map(
        lambda leaf, _: _rounded(leaf, bits, jnp.round)
    )


def stochastic_quantise(
    key: Key, bits: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Rounds every coordinate up or down at random, to one of `quantise`'s levels.

    Up with the probability that makes the mean over the draws the coordinate itself;
    at most s / L off, with variance p (1 - p) (s / L)^2, where p is the share of the
    step from the level below. Alistarh et al. (2017), "QSGD", section 3.1, with the
    scale s = max |g| of a leaf instead of its 2-norm: fewer zeros, less variance.
    With 2 bits this is Wen et al. (2017), "TernGrad", section 3. No guarantee: an
    attacker sees an interval of width 2 s / L around every coordinate. Its derivative
    is as that of `quantise`.

    Args:
      key: consumed. Every leaf and every call has its own draw.
      bits: `[]`, 2 to 32, as for `quantise`.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("bits", bits, at_least=2, at_most=32)

    def quantised(key: Key, updates: Update, params: Params) -> Update:
        del params
        # Not drawn in the leaf's dtype: bfloat16 draws have 8 bits.
        draws = optax.tree.random_like(
            key, updates, jax.random.uniform, dtype=jnp.float32
        )
        return jax.tree.map(leaf_quantised, draws, updates)

    def leaf_quantised(draw: jax.Array, leaf: jax.Array) -> jax.Array:
        def either(x: jax.Array) -> jax.Array:
            below = jnp.floor(x)
            return below + (draw < x - below)

        return _rounded(leaf, bits, either)

    return keyed(key, quantised)


def _rounded(
    leaf: Any,
    bits: jax.typing.ArrayLike,
    rounding: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    levels = jnp.asarray(2.0 ** (jnp.asarray(bits) - 1) - 1, wide.dtype)
    largest = jnp.max(jnp.abs(wide), initial=0)
    largest = jnp.where(largest > 0, largest, 1)
    return (rounding(wide / largest * levels) / levels * largest).astype(leaf.dtype)
