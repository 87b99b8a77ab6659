"""Updates of few bits."""

import jax
import jax.numpy as jnp
import optax

from invertjax.defenses import ranges


def quantise(bits: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Rounds every coordinate to the nearest of 2^bits - 1 levels, evenly spaced.

    With s = max |g| of a leaf and L = 2^(bits-1) - 1: round(L g / s) s / L, which is
    at most s / (2 L) off, and itself when done twice. Symmetric and uniform, as the
    int8 format in Jacob et al. (2018), section 2.1, with zero point 0 and one scale a
    leaf. Deterministic, hence biased. No guarantee. Its derivative is zero almost
    everywhere: an adaptive attacker needs a surrogate.

    Args:
      bits: `[]`, 2 to 32, need not be whole. 2 has the levels -s, 0, s; for one bit
        take `sign`. From 25 bits on, float32 rounds coarser than the levels.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("bits", bits, at_least=2, at_most=32)

    def leaf_quantised(leaf, _):
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        levels = jnp.asarray(2.0 ** (jnp.asarray(bits) - 1) - 1, wide.dtype)
        largest = jnp.max(jnp.abs(wide), initial=0)
        largest = jnp.where(largest > 0, largest, 1)
        rounded = jnp.round(wide / largest * levels) / levels * largest
        return rounded.astype(leaf.dtype)

    return optax.stateless_with_tree_map(leaf_quantised)
