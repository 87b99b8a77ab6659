"""Takes the images of a batch out of an update one after the other, and proves each.

Shariati and Alambardar Meybodi (2026), "Cascading Gradient Inversion via LT-Code
Inspired Peeling": units that one image alone moves give that image; what it explains is
subtracted, and units that two images moved belong to one. Ours is of any dense layer
with a bias and a relu, also behind convolutions, where it gives the layer's inputs; and
an image counts only with a certificate that rests on what the update's precision
allows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax import leaves, losses
from invertjax.base import Params, Update
from invertjax.exact import certificate, groups, leftover, precision
from invertjax.exact.certificate import Behind, Certificate, Seen, Slopes
from invertjax.exact.dense_relu import DenseRelu
from invertjax.exact.groups import rms
from invertjax.exact.leftover import Amounts, Layer, Left, Rows

SURE = 18.4  # log of 1e8: odds against a candidate that fits by chance
LIKELY = 6.9  # log of 1e3: enough to subtract it, if it is proven in the end
EXACT = 0.01  # error of an input relative to its size, above which nothing is certified


class Peeled(NamedTuple):
    """What was found in an update; rows that were not found are zero.

    features: `[B, D]`, inputs of the layer. labels: `[B]` int, -1 where not found.
    certified: `[B]` bool. weights: `[B]`, of the images in the update.
    units: `[B]` int, how many agreed. error: `[B]`, root mean square of the errors that
    the update's precision allows a row of features.
    left: `(W, c)`, the layer's gradient less what was found, `[D, N]` and `[N]`.
    candidates: `[]` int, that were looked at. rounds: `[]` int.
    complete: `[]` bool, whether nothing is left.
    """

    features: jax.Array
    labels: jax.Array
    certified: jax.Array
    weights: jax.Array
    units: jax.Array
    error: jax.Array
    left: tuple[jax.Array, jax.Array]
    candidates: jax.Array
    rounds: jax.Array
    complete: jax.Array


def peel(
    found: DenseRelu,
    params: Params,
    observed: Update,
    size: int,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy,
    num_classes: int | None = None,
    weights: Any = None,
    noise: Any = 0.0,
    rounds: int | None = None,
) -> Peeled:
    """Finds inputs of a layer, with labels and a proof of each.

    Args:
      found: the layer, of `dense_relu.lowest` or `layers`.
      params: of the network.
      observed: one gradient, of which the parts of this layer and of the next one are
        read.
      size: B, the images behind it.
      loss: `(logits [1, K], labels [1]) -> []` of one image.
      num_classes: labels are 0 to this. Default: K.
      weights: `[M]`, what an image may count in the update. Default: 1 / B, and
        2 / B of two images that are equal. `[0]`: any, each its own, as after a
        clipping; it is found with the label.
      noise: standard deviation of noise in the update, known.
      rounds: the most; default 4 B + 8.
    """
    observed = leaves.floats(observed)
    exact = precision.of(observed, noise, size)
    wide = exact.stored.dtype
    columns, bias = (part.astype(wide) for part in found.of(observed))
    following = found.next_of(observed)
    if following is None:
        following = jnp.zeros((len(bias), 0))
    following = following.astype(wide)
    layer = _layer(found, params, exact, loss, num_classes)
    twice = (1 / size, 2 / size)[:size]
    tried = jnp.asarray(twice if weights is None else weights, wide)
    stored = _stored(exact, leftover.sizes_of(columns, bias, following))
    layer = layer._replace(weights=jnp.atleast_1d(tried), stored=stored)
    most = 4 * size + 8 if rounds is None else rounds
    with jax.default_matmul_precision("highest"):
        left = jax.lax.while_loop(
            lambda left: left.going & (left.rounds < most) & (left.known < size),
            functools.partial(_round, layer, size),
            leftover.start(layer, columns, bias, following, size),
        )
        return _ended(layer, left, size, 1.0 if weights is None else jnp.inf)


def _layer(
    found: DenseRelu,
    params: Params,
    exact: precision.Precision,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    num_classes: int | None,
) -> Layer:
    wide = exact.stored.dtype
    weight, bias = (part.astype(wide) for part in found.of(params))
    hidden = jax.ShapeDtypeStruct((1, found.units), wide)
    classes = num_classes or jax.eval_shape(found.behind, params, hidden).shape[1]
    after = found.behind_next
    behind = Behind(
        functools.partial(found.behind, params),
        None if after is None else functools.partial(after, params),
        found.next_of(params),
        loss,
        jnp.arange(classes),
    )
    mixing = groups.mixing(found.inputs, wide)
    return Layer(weight, bias, mixing, bias, exact, behind, (bias, bias, bias))


def _stored(exact: precision.Precision, sizes: Amounts) -> Amounts:
    """Returns what rounding, when the update was sent, and noise may have taken."""
    single = 4 * exact.noise + exact.tiny  # the largest of several coordinates
    half = exact.stored / 2  # to the nearest number; of many, root mean square, a third
    return Amounts(
        half * sizes.bias + single,
        0.6 * half * sizes.column + exact.noise + exact.tiny,
        half * sizes.row + single,
    )


def _round(layer: Layer, size: int, left: Left) -> Left:
    """Looks at as many candidates as may be, and subtracts what is proven of them."""
    units, seen = left.seen(left.errors(layer))
    looked_at = min(3 * size + 16, len(left.bias))
    chosen = groups.representatives(units, _promising(layer, left), looked_at)
    bias = jnp.where(units.loud, left.bias, 1)[chosen]
    x = (left.columns[:, chosen] / bias[None]).T
    errors = units.ratio_errors[chosen]

    sums = x @ layer.mixing

    def judged(
        of: tuple[jax.Array, ...], network: Slopes
    ) -> tuple[Certificate, jax.Array]:
        members = groups.group(units, of[0], of[1])
        proof = certificate.certificate(network, members, seen, layer.weights)
        return proof, members

    network, (proof, group) = _each(layer, x, errors, judged, (sums, errors))
    label = proof.label.astype(jnp.int32)
    rows = Rows(x, sums, label, proof.weight, errors, group, proof.evidence)
    good = (proof.misfit <= 1) & (proof.evidence > LIKELY) & units.loud[chosen]
    good &= errors <= EXACT * rms(x)
    if not left.following.size:  # then one unit is one equation
        good &= jnp.sum(group, axis=1) > 1
    good &= _new(rows, good, left.found, left.known)
    good &= jnp.cumsum(good) <= size - left.known
    looked_at = left.looked_at + jnp.sum(units.loud[chosen], dtype=jnp.int32)
    left = left._replace(looked_at=looked_at)
    return leftover.less(left, rows, good, network, proof)


def _each(
    layer: Layer,
    x: jax.Array,
    errors: jax.Array,
    judged: Callable[[Any, Slopes], Any],
    of: Any,
) -> tuple[Slopes, Any]:
    """Returns what the network says of candidates `[C, D]`, and what `judged` does, of
    as many at once as fit."""
    z = x @ layer.weight + layer.bias[None]

    def one(given: tuple[jax.Array, jax.Array, jax.Array, Any]) -> tuple[Slopes, Any]:
        size, error, z, rest = given
        network = certificate.slopes(layer.behind, z, _doubt(layer, size, error))
        return network, judged(rest, network)

    following = layer.behind.following
    entries = layer.weight.shape[1] + (0 if following is None else following.size)
    few = max(1, 2**22 // (len(layer.behind.labels) * entries))
    return jax.lax.map(one, (rms(x), errors, z, of), batch_size=min(few, len(x)))


def _doubt(layer: Layer, size: jax.Array, error: jax.Array) -> jax.Array:
    """Returns how far pre-activations may be off, by errors of x and by rounding."""
    length = jnp.linalg.norm(layer.weight, axis=0)
    rounding = leftover.SUMMED * layer.exact.computed
    return 4 * error * length + rounding * (size * length + jnp.abs(layer.bias))


def _promising(layer: Layer, left: Left) -> jax.Array:
    """Says of units whether one image alone seems to have moved them, `[N]` bool.

    With a head that follows, G_j / (w h_j) is then a softmax less a label: one entry is
    negative, and none beyond 1. It only says where to look first.
    """
    if left.following.shape[1] < 2:
        return jnp.zeros(len(left.bias), bool)
    bias = jnp.where(left.bias == 0, 1, left.bias)
    z = jnp.sum(layer.weight * left.columns, axis=0) / bias + layer.bias
    slope = left.following / jnp.where(z > 0, z, 1)[:, None]
    largest = jnp.max(jnp.abs(slope), axis=1)
    known = len(layer.weights) > 0
    limit = jnp.full((), jnp.inf) if not known else jnp.max(layer.weights)
    small = largest <= limit
    negative = slope < -1e-3 * (limit if known else largest[:, None])
    return (z > 0) & small & (jnp.sum(negative, axis=1) == 1)


def _new(rows: Rows, good: jax.Array, known: Rows, count: jax.Array) -> jax.Array:
    """Says which candidates, `[C]` bool, are neither known nor a better one again.

    What rounding leaves of a known image looks like it.
    """

    def same(a: Rows, b: Rows) -> jax.Array:
        apart = rms(a.sums[:, None] - b.sums[None])
        return apart <= 8 * (a.error[:, None] + b.error[None])

    number = jnp.arange(len(good))
    again = same(rows, known) & (jnp.arange(len(known.label)) < count)[None]
    before = number[None] < number[:, None]
    twice = same(rows, rows) & good[None] & before
    return ~jnp.any(again, axis=1) & ~jnp.any(twice, axis=1)


def _ended(layer: Layer, left: Left, size: int, total: float) -> Peeled:
    errors, found = left.errors(layer), left.found
    units, _ = left.seen(errors)
    quiet = ~units.loud & (rms(left.sums) <= groups.LOUD * errors.column)
    counted = jnp.abs(jnp.sum(found.weight) - total) < 1 / (2 * size)
    complete = jnp.all(quiet) & ((left.known == size) | counted)
    # What explains the whole gradient of the layer together is proven together.
    there = jnp.arange(size) < left.known
    evidence = jax.lax.fori_loop(
        0, 3, lambda _, now: _together(layer, left, errors, now), found.evidence
    )
    certified = there & ((evidence > SURE) | complete)
    return Peeled(
        found.x,
        found.label,
        certified,
        found.weight,
        jnp.sum(found.group, axis=1, dtype=jnp.int32),
        found.error,
        (left.columns, left.bias),
        left.looked_at,
        left.rounds,
        complete,
    )


def _together(
    layer: Layer, left: Left, errors: Amounts, evidence: jax.Array
) -> jax.Array:
    """Returns the evidence `[B]` for images by all units that are now explained.

    A unit in which nothing is left, in any of its coordinates, says of each image that
    moved it what the image's own units say. Not counted are units that were taken for
    the own ones of another image that is not proven: of these nothing can be left.
    """
    found = left.found
    quiet = jnp.abs(left.bias) <= errors.bias
    quiet &= rms(left.sums) <= errors.column
    quiet &= jnp.max(jnp.abs(left.following), axis=1, initial=0) <= errors.row
    weak = found.group & (evidence <= SURE)[:, None]
    others = jnp.sum(weak, axis=0)[None] - weak  # of the other images

    def judged(of: tuple[jax.Array, ...], network: Slopes) -> jax.Array:
        own, others, label, weight = of
        slope = jnp.where(network.hidden > 0, weight * network.by_label[label], 0)
        moved = jnp.abs(slope) > groups.LOUD * errors.bias
        group = own | (quiet & moved & ~network.near & (others == 0))
        rows = network.hidden[:, None] * (weight * network.next_by_label[label])[None]
        following = left.following + rows
        seen = Seen(left.bias + slope, errors.bias, following, errors.row)
        proof = certificate.certificate(network, group, seen, layer.weights)
        fits = (proof.misfit <= 1) & (proof.label == label)
        return jnp.where(fits, proof.evidence, 0)

    of = found.group, others, found.label, found.weight
    again = _each(layer, found.x, found.error, judged, of)[1]
    return jnp.maximum(evidence, again)
