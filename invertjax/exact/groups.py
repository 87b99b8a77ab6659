"""Units of a dense layer that a single image seems to move, found by their ratios.

The gradient of unit j is (sum_i s_ij x_i, sum_i s_ij). Where one image i moves the
unit, their ratio is x_i, and two such units agree. Ratios are compared by a few random
sums of their coordinates: those of different images differ in nearly all of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SUMS = 32  # random sums of a column
TELLING = 1e-3  # error of a ratio, to its size, that tells images apart
LOUD = 8.0  # errors that a bias' gradient has to be larger than


class Units(NamedTuple):
    """What is left of the gradient of a layer, unit by unit.

    bias: `[N]`. sums: `[N, R]`, of the weights' columns, of their root mean square.
    bias_error: `[N]`. error: `[N]`, of a column, root mean square.
    """

    bias: jax.Array
    sums: jax.Array
    bias_error: jax.Array
    error: jax.Array

    @property
    def loud(self) -> jax.Array:
        """Whether something is left of a unit, `[N]` bool."""
        return jnp.abs(self.bias) > LOUD * self.bias_error

    @property
    def ratios(self) -> jax.Array:
        """`[N, R]` sums of the ratio of each unit."""
        return self.sums / jnp.where(self.loud, self.bias, 1)[:, None]

    @property
    def ratio_errors(self) -> jax.Array:
        """`[N]`, root mean squares of the errors of the ratios."""
        bias = jnp.where(self.loud, jnp.abs(self.bias), 1)
        return (self.error + rms(self.ratios) * self.bias_error) / bias


def mixing(inputs: int, dtype: jnp.dtype) -> jax.Array:
    """Returns `[D, R]` signs over sqrt(D): sums as large as the mean square root."""
    signs = jax.random.rademacher(jax.random.key(0), (inputs, SUMS), dtype)
    return signs / inputs**0.5


def rms(rows: jax.Array) -> jax.Array:
    """Returns root mean squares over the last axis."""
    return jnp.sqrt(jnp.mean(jnp.square(rows), axis=-1))


def representatives(units: Units, promising: jax.Array, count: int) -> jax.Array:
    """Returns the `count` units to look at, `[C]`: of every group the one whose
    ratio is the most exact; the promising ones first, then those of the largest groups.

    Args:
      units: what is left of them.
      promising: `[N]` bool.
      count: C <= N.
    """
    ratios, errors = units.ratios, units.ratio_errors
    loud, telling = units.loud, TELLING * rms(ratios)

    def row(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        near = rms(ratios - ratios[j][None]) <= 4 * (errors + errors[j])
        near &= loud & loud[j] & (errors <= jnp.maximum(4 * errors[j], telling[j]))
        return jnp.sum(near), jnp.argmin(jnp.where(near, errors, jnp.inf))

    number = jnp.arange(len(loud))
    counts, leaders = jax.lax.map(row, number, batch_size=64)
    score = jnp.where(promising, len(loud), 0) + counts
    return jax.lax.top_k(jnp.where(leaders == number, score, -1), count)[1]


def group(units: Units, sums: jax.Array, error: jax.Array) -> jax.Array:
    """Returns which units, `[N]` bool, agree with one candidate.

    Args:
      units: what is left of them.
      sums: `[R]`, of the candidate.
      error: `[]`, of the candidate, root mean square.
    """
    off = rms(units.sums - units.bias[:, None] * sums[None])
    own = units.error + rms(sums) * units.bias_error + jnp.abs(units.bias) * error
    # What agrees with anything is no member.
    telling = units.ratio_errors <= jnp.maximum(4 * error, TELLING * rms(sums))
    return units.loud & telling & (off <= 4 * own)
