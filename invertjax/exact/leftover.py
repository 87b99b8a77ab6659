"""What is left of a layer's gradient after images were subtracted, and how exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from invertjax.exact.certificate import Behind, Certificate, Seen, Slopes
from invertjax.exact.groups import SUMS, Units, rms
from invertjax.exact.precision import Precision

SUMMED = 4.0  # roundings of a sum, in units of the terms' precision


class Layer(NamedTuple):
    """What does not change from round to round.

    weight: W `[D, N]`. bias: c `[N]`. mixing: `[D, R]`, see `groups.mixing`.
    weights: `[M]`, that an image may have in the update. stored: what rounding, when
    the update was sent, and noise took of biases `[N]`, columns `[N]`, rows `[N]` of
    the next layer.
    """

    weight: jax.Array
    bias: jax.Array
    mixing: jax.Array
    weights: jax.Array
    exact: Precision
    behind: Behind
    stored: tuple[jax.Array, jax.Array, jax.Array]


class Amounts(NamedTuple):
    """A size for each unit, `[N]`: of biases, of columns of the weight (root mean
    square), and of rows of the next weight (largest)."""

    bias: jax.Array
    column: jax.Array
    row: jax.Array


class Rows(NamedTuple):
    """Images that were found, `[B, ...]`, or candidates, `[C, ...]`.

    x: `[B, D]`. sums: `[B, R]` of it. error: `[B]`, of x, root mean square.
    group: `[B, N]` bool, the units that agreed. evidence: see `Certificate`.
    """

    x: jax.Array
    sums: jax.Array
    label: jax.Array
    weight: jax.Array
    error: jax.Array
    group: jax.Array
    evidence: jax.Array


class Left(NamedTuple):
    """What is left of the gradient.

    columns: `[D, N]`. sums: `[N, R]` of them. bias: `[N]`. following: `[N, M]`.
    terms: sizes of all that was added up in a coordinate. blur: errors of what was
    subtracted. found: `[B, ...]` the images that were; known: `[]` int, how many.
    looked_at: `[]` int, how many candidates there were.
    rounds: `[]` int. going: `[]` bool, whether the last round found one.
    """

    columns: jax.Array
    sums: jax.Array
    bias: jax.Array
    following: jax.Array
    terms: Amounts
    blur: Amounts
    found: Rows
    known: jax.Array
    looked_at: jax.Array
    rounds: jax.Array
    going: jax.Array

    def errors(self, layer: Layer) -> Amounts:
        """Returns how far what is left may be off."""
        rounding = SUMMED * layer.exact.computed
        parts = zip(layer.stored, self.terms, self.blur, strict=True)
        return Amounts(*(sent + rounding * terms + blur for sent, terms, blur in parts))

    def seen(self, errors: Amounts) -> tuple[Units, Seen]:
        """Returns it as `groups` and `certificate` take it."""
        units = Units(self.bias, self.sums, errors.bias, errors.column)
        return units, Seen(self.bias, errors.bias, self.following, errors.row)


def start(
    layer: Layer, columns: jax.Array, bias: jax.Array, following: jax.Array, size: int
) -> Left:
    """Returns the gradient as it was observed, with room for `size` images."""
    wide = columns.dtype
    # Terms may have cancelled in a unit: a typical one says how large they are.
    sizes = (part + 0.1 * jnp.mean(part) for part in sizes_of(columns, bias, following))
    no = jnp.zeros(len(bias), wide)
    none = jnp.array(0, jnp.int32)
    found = Rows(
        jnp.zeros((size, len(columns)), wide),
        jnp.zeros((size, SUMS), wide),
        jnp.full(size, -1, jnp.int32),
        jnp.zeros(size, wide),
        jnp.zeros(size, wide),
        jnp.zeros((size, len(bias)), bool),
        jnp.zeros(size, wide),
    )
    return Left(
        columns,
        columns.T @ layer.mixing,
        bias,
        following,
        Amounts(*sizes),
        Amounts(no, no, no),
        found,
        none,
        none,
        none,
        jnp.array(True),
    )


def sizes_of(columns: jax.Array, bias: jax.Array, following: jax.Array) -> Amounts:
    """Returns how large the gradient of each unit is."""
    rows = jnp.max(jnp.abs(following), axis=1, initial=0)
    return Amounts(jnp.abs(bias), rms(columns.T), rows)


def less(
    left: Left,
    rows: Rows,
    good: jax.Array,
    network: Slopes,
    proof: Certificate,
) -> Left:
    """Subtracts candidates `[C]`, and keeps them.

    Args:
      left: before.
      rows: the candidates.
      good: `[C]` bool, which of them.
      network, proof: of the candidates.
    """
    on = (network.hidden > 0) & good[:, None]
    slope = jnp.where(on, proof.slope, 0)
    hidden = jnp.where(on, network.hidden, 0)
    size, x_size = jnp.abs(slope), jnp.where(good, rms(rows.x), 0)
    # What is allowed is the worst; the units of the group have shown how much it is.
    measured = jnp.minimum(4 * proof.shown + 0.01, 1)
    # A unit that rounding switches on or off is wrong by all of its slope.
    unsure = jnp.where(network.near, jnp.abs(proof.slope), 0)
    unsure += measured[:, None] * jnp.where(on, proof.slope_error, 0)
    unsure = jnp.where(good[:, None], unsure, 0)
    next_size = jnp.max(jnp.abs(proof.next_slope), axis=1, initial=0)
    next_unsure = measured * jnp.max(proof.next_slope_error, axis=1, initial=0)
    doubt = measured[:, None] * jnp.where(on | network.near, network.doubt, 0)
    doubt = jnp.where(good[:, None], doubt, 0)
    terms = Amounts(_total(good, size), _total(x_size, size), _total(next_size, hidden))
    blur = Amounts(
        _total(good, unsure),
        jnp.hypot(_total(x_size, unsure), _total(measured * rows.error, size)),
        jnp.hypot(_total(next_size, doubt), _total(next_unsure, hidden)),
    )
    where = left.known + jnp.cumsum(good) - 1
    where = jnp.where(good, where, len(left.found.label))

    def keep(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[where].set(new, mode="drop")

    x = jnp.where(good[:, None], rows.x, 0)
    sums = jnp.where(good[:, None], rows.sums, 0)
    return Left(
        left.columns - x.T @ slope,
        left.sums - slope.T @ sums,
        left.bias - jnp.sum(slope, 0),
        left.following - hidden.T @ jnp.where(good[:, None], proof.next_slope, 0),
        jax.tree.map(jnp.hypot, left.terms, terms),
        jax.tree.map(jnp.hypot, left.blur, blur),
        jax.tree.map(keep, left.found, rows),
        left.known + jnp.sum(good, dtype=jnp.int32),
        left.looked_at,
        left.rounds + 1,
        jnp.any(good),
    )


def _total(factor: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns the root of the sum of squares of rows `[C, N]`, each times a factor:
    roundings are as good as independent."""
    return jnp.sqrt(jnp.sum(jnp.square(factor[:, None] * rows), axis=0))
