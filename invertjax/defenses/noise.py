"""Additive noise, drawn and added in float32 or wider, and rounded once.

In bfloat16 itself a Gaussian has 128 values, and none beyond 2.9 standard deviations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from invertjax import trees
from invertjax.base import Key, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.drawing import keyed


def gaussian_noise(
    key: Key, stddev: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Adds N(0, stddev^2) to every coordinate.

    Every leaf has its own draw, and so has every call of `update`. Dwork and Roth
    (2014), "The Algorithmic Foundations of Differential Privacy", appendix A. On its
    own it has no guarantee: privacy needs a bound on the norm, so chain it after
    `clip`; even then one update, not one image, is what it hides.

    Args:
      key: consumed.
      stddev: `[]`, >= 0, in units of the update. Studies sweep 1e-4 to 1e-1.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("stddev", stddev, at_least=0)
    return _noise(key, stddev, jax.random.normal)


def laplace_noise(
    key: Key, scale: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Adds Laplace(0, scale), of standard deviation sqrt(2) scale, to every coordinate.

    Draws as in `gaussian_noise`. Dwork and Roth (2014), section 3.3. The guarantee
    there is for a bounded L1 norm, which `clip` does not give.

    Args:
      key: consumed.
      scale: `[]`, >= 0, in units of the update.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("scale", scale, at_least=0)
    return _noise(key, scale, jax.random.laplace)


def _noise(
    key: Key, scale: jax.typing.ArrayLike, sampler: Callable
) -> optax.GradientTransformation:
    def noisy(key: Key, updates: Update, params: Params) -> Update:
        del params
        wide = trees.wide(updates)
        noise = optax.tree.random_like(key, wide, sampler)
        found = jax.tree.map(
            lambda leaf, draw: leaf + jnp.asarray(scale, leaf.dtype) * draw, wide, noise
        )
        return trees.rounded(found, updates)

    return keyed(key, noisy)
