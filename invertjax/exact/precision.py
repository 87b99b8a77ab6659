"""How exact the numbers of an update are, read off the numbers themselves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax import trees

# Types in which updates are often sent, whatever type holds them afterwards.
_NARROW = (jnp.bfloat16, jnp.float16, jnp.float32)


class Precision(NamedTuple):
    """How far the coordinates of an update are from what they should be, at most.

    stored: `[]`, relative, by rounding to the type in which it was sent.
    computed: `[]`, relative, of a sum to its terms, by rounding on the way.
    noise: `[]`, standard deviation of noise that was added, or of steps of fixed point.
    tiny: `[]`, absolute, where the type ends.
    """

    stored: Any
    computed: Any
    noise: Any
    tiny: Any


def of(update: Any, noise: Any = 0.0, members: int = 1) -> Precision:
    """Returns the precision of an update.

    An update in bfloat16 that was sent or saved as float32 is found out: all its
    coordinates are numbers of the narrower type. So is one in fixed point, as secure
    aggregation sums it: all are multiples of one power of two. Every member of the sum
    was rounded to it.

    Args:
      update: pytree of floats, may be traced.
      noise: standard deviation of noise that was added.
      members: clients whose mean the update is, at most.
    """
    leaves = jax.tree.leaves(update)
    wide = jnp.result_type(float, *leaves)
    stored = jnp.asarray(jnp.finfo(wide).eps, wide)
    tiny = jnp.asarray(jnp.finfo(wide).tiny, wide)
    for dtype in reversed(_NARROW):
        fits = jnp.stack([jnp.all(_rounds_to(leaf, dtype)) for leaf in leaves]).all()
        limits = jnp.finfo(dtype)
        stored = jnp.where(fits, jnp.maximum(stored, float(limits.eps)), stored)
        if limits.bits < 32:
            smallest = float(limits.smallest_subnormal)
            tiny = jnp.where(fits, jnp.maximum(tiny, smallest), tiny)
    computed = jnp.asarray(jnp.finfo(wide).eps, wide)
    steps = jnp.stack([_step(leaf.astype(wide)) for leaf in leaves]).min()
    # All floats are multiples of the last digit of the smallest.
    steps = jnp.where(steps > stored * trees.rms(update), steps, 0)
    steps = jnp.where(jnp.isfinite(steps), steps, 0) * (members / 12) ** 0.5
    return Precision(stored, computed, jnp.hypot(jnp.asarray(noise, wide), steps), tiny)


def _step(leaf: jax.Array) -> jax.Array:
    """Returns the largest power of two, `[]`, of which all numbers are multiples."""
    digits = jnp.finfo(leaf.dtype).nmant + 1
    mantissa, exponent = jnp.frexp(jnp.where(leaf == 0, 1, leaf))
    whole = (mantissa * 2.0**digits).astype(jnp.int64 if digits > 24 else jnp.int32)
    lowest = (whole & -whole).astype(leaf.dtype)
    steps = jnp.ldexp(lowest, exponent - digits)
    return jnp.min(jnp.where(leaf == 0, jnp.inf, steps), initial=jnp.inf)


def _rounds_to(leaf: jax.Array, dtype: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if jnp.finfo(leaf.dtype).bits <= jnp.finfo(dtype).bits and leaf.dtype != dtype:
        # A narrow type holds few numbers of another narrow one.
        leaf = leaf.astype(jnp.float32)
    info = jnp.finfo(dtype)
    # `reduce_precision` is never left out by a compiler, as two conversions may be.
    rounded = jax.lax.reduce_precision(leaf, info.nexp, info.nmant)
    return rounded == leaf
