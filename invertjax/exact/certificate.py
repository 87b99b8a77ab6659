"""What proves of an input of a dense layer with relu that it was in the batch.

If only the image x moves the units S, and g is the gradient of their biases, then for
its label l and its weight w in the update

    w dL(x, l)/dh_j = g_j    for all j in S,    x W_j + c_j > 0 there,

h the outputs of the layer. The derivative runs through all that follows, on this one
image. Where a dense layer u = h V + ... comes next, whose gradient is G,

    w h_j dL(x, l)/du = G_j    for all j in S,

as well. Nothing of the truth is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Behind(NamedTuple):
    """What follows the layer.

    hidden: `h [1, N] -> logits [1, K]`. product: `u [1, M] -> logits`, of the next
    layer's product u = h V; None where none follows. following: V `[N, M]`, or None.
    loss: `(logits [1, K], labels [1]) -> []`. labels: `[L]`, all that there are.
    """

    hidden: Callable[[jax.Array], jax.Array]
    product: Callable[[jax.Array], jax.Array] | None
    following: jax.Array | None
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    labels: jax.Array


class Slopes(NamedTuple):
    """What the network says of one input x of the layer.

    hidden: `[N]`, h. doubt: `[N]`, by how much h may be wrong.
    near: `[N]` bool, units so near to zero that rounding decides.
    by_label: `[L, N]`, dL/dh. spread: `[K, N]`, its derivative by the logits.
    next_by_label: `[L, M]`, dL/du, and next_spread `[K, M]`; M = 0 where none follows.
    moved: `[K]`, by how much the logits may be wrong.
    """

    hidden: jax.Array
    doubt: jax.Array
    near: jax.Array
    by_label: jax.Array
    spread: jax.Array
    next_by_label: jax.Array
    next_spread: jax.Array
    moved: jax.Array


class Seen(NamedTuple):
    """What is left of the gradients of the units, and how exact that is.

    bias: `[N]`. bias_error: `[N]`. following: `[N, M]`, G. next_error: `[N]`.
    """

    bias: jax.Array
    bias_error: jax.Array
    following: jax.Array
    next_error: jax.Array


class Certificate(NamedTuple):
    """How well one input of the layer explains its group of units.

    label: `[]` int. weight: `[]`, the one of the weights that fits.
    misfit: `[]`, the largest difference in the group, over what is allowed.
    shown: `[]`, the largest share of what was allowed that the group showed anywhere.
    evidence: `[]`, the natural logarithm of one over the chance that the logits of
    another input would fit as well.
    slope: `[N]`, w dL/dh, and slope_error `[N]`. next_slope: `[M]`, w dL/du, and
    next_slope_error `[M]`.
    """

    label: jax.Array
    weight: jax.Array
    misfit: jax.Array
    shown: jax.Array
    evidence: jax.Array
    slope: jax.Array
    slope_error: jax.Array
    next_slope: jax.Array
    next_slope_error: jax.Array


def slopes(behind: Behind, z: jax.Array, doubt: jax.Array) -> Slopes:
    """Returns what follows from the pre-activations `z [N]` of one input.

    Args:
      behind: what follows the layer.
      z: of the input.
      doubt: `[N]`, by how much they may be wrong.
    """
    hidden = jnp.maximum(z, 0)
    if behind.product is None or behind.following is None:
        out, jacobian = _jacobian(behind.hidden, hidden)
        step = jnp.zeros((len(jacobian), 0), z.dtype)
    else:
        out, step = _jacobian(behind.product, hidden @ behind.following)
        jacobian = step @ behind.following.T

    def of_label(out: jax.Array, label: jax.Array) -> jax.Array:
        return behind.loss(out[None], label[None])

    residual = jax.vmap(jax.grad(of_label), (None, 0))(out, behind.labels)
    curvature = jax.hessian(of_label)(out, behind.labels[0])
    on = jnp.where(z > 0, doubt, 0)
    return Slopes(
        hidden,
        doubt,
        jnp.abs(z) <= doubt,
        residual @ jacobian,
        curvature @ jacobian,
        residual @ step,
        curvature @ step,
        jnp.sqrt(jnp.square(jacobian) @ jnp.square(on)),
    )


def _jacobian(
    logits: Callable[[jax.Array], jax.Array], at: jax.Array
) -> tuple[jax.Array, jax.Array]:
    out, pull = jax.vjp(lambda row: logits(row[None])[0], at)
    return out, jax.vmap(lambda row: pull(row)[0])(jnp.eye(len(out), dtype=out.dtype))


def certificate(
    found: Slopes, group: jax.Array, seen: Seen, weights: jax.Array
) -> Certificate:
    """Compares what one input says of its group with what the update says.

    Args:
      found: of the input.
      group: `[N]` bool, S.
      seen: of the update.
      weights: `[M]`, that an image may have; `[0]`: any, which is one unknown more.
    """
    free = not len(weights)
    if free:
        weights = _fitted_weight(found, group, seen)[None]
    unsure = _spread_of(found.moved, found.spread)
    wanted = weights[:, None, None] * found.by_label[None]  # [weights, L, N]
    allowed = seen.bias_error[None] + weights[:, None] * unsure[None]
    off = jnp.abs(wanted - seen.bias[None, None]) / allowed[:, None]
    worst = jnp.max(jnp.where(group[None, None], off, 0), axis=-1)
    which, label = jnp.unravel_index(jnp.argmin(worst), worst.shape)
    weight, allowed = weights[which], allowed[which]
    inside = jnp.any(group) & jnp.all(~group | (found.hidden > 0) | found.near)
    shown = misfit = jnp.where(inside, worst[which, label], jnp.inf)
    # The weight is an unknown as the logits are: the last row.
    spread = jnp.concatenate([found.spread, found.by_label[label][None]])
    strength = jnp.where(group[None], weight * spread / allowed[None], 0)

    following = weight * found.next_by_label[label]
    next_unsure = weight * _spread_of(found.moved, found.next_spread)
    if following.size:
        row = found.next_by_label[label][None]
        spread = jnp.concatenate([found.next_spread, row])
        facts = spread, following, next_unsure
        off, apart, more = _of_the_next(found, group, seen, *facts)
        misfit = jnp.maximum(misfit, off)
        shown = jnp.maximum(misfit, apart)
        strength = jnp.concatenate([strength, weight * more], axis=1)
    strength = _without_last(strength) if free else strength[:-1]
    return Certificate(
        label,
        weight,
        misfit,
        shown,
        evidence(strength) - jnp.log(float(len(weights))),  # each was one more try
        weight * found.by_label[label],
        weight * unsure,
        following,
        next_unsure,
    )


def _fitted_weight(found: Slopes, group: jax.Array, seen: Seen) -> jax.Array:
    """Returns the weight `[]` with which some label explains the group best."""
    near = jnp.where(group, 1 / seen.bias_error, 0)
    slopes, bias = found.by_label * near[None], seen.bias * near
    square = jnp.sum(jnp.square(slopes), axis=1)
    weight = slopes @ bias / jnp.where(square > 0, square, 1)  # [L]
    worst = jnp.max(jnp.abs(weight[:, None] * slopes - bias[None]), axis=1)
    if found.next_by_label.size:
        row = weight[:, None] * found.next_by_label  # [L, M]
        allowed = seen.next_error + found.doubt * jnp.max(jnp.abs(row))
        off = found.hidden[None, :, None] * row[:, None] - seen.following[None]
        off = jnp.max(jnp.abs(off), axis=-1) / allowed[None]
        off = jnp.max(jnp.where(group[None], off, 0), axis=-1)
        worst = jnp.maximum(worst, off)
    return weight[jnp.argmin(jnp.where(weight > 0, worst, jnp.inf))]


def _without_last(strength: jax.Array) -> jax.Array:
    """Returns what the equations say of the logits once the last unknown, which is
    fitted, has taken its share."""
    last = strength[-1] / jnp.maximum(jnp.max(jnp.abs(strength[-1])), 1e-30)
    square = jnp.maximum(jnp.sum(jnp.square(last)), 1e-30)
    return strength[:-1] - (strength[:-1] @ last / square)[:, None] * last[None]


def _of_the_next(
    found: Slopes,
    group: jax.Array,
    seen: Seen,
    spread: jax.Array,
    slope: jax.Array,
    unsure: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the largest difference in the next layer's gradient, over what is
    allowed; by how much of its doubt a unit is further on; and the derivatives of the
    equations by the logits and by the weight, `[K + 1, 2 M]`.

    How far on a unit is may be in doubt; the direction of its row is not.
    """
    square = jnp.sum(jnp.square(slope))
    square = jnp.where(square > 0, square, 1)
    fitted = seen.following @ slope / square
    apart = jnp.abs(fitted - found.hidden) / (found.doubt + 1e-30)
    low, high = found.hidden - found.doubt, found.hidden + found.doubt
    fitted = jnp.clip(fitted, jnp.maximum(low, 0), high)
    allowed = seen.next_error + fitted * jnp.max(unsure)
    off = jnp.max(jnp.abs(fitted[:, None] * slope[None] - seen.following), axis=1)
    worst = jnp.max(jnp.where(group, off / allowed, 0))
    along = spread @ slope
    inside = along[:, None] * slope[None] / square
    loose = allowed + found.doubt * jnp.max(jnp.abs(slope))
    parts = (inside, loose), (spread - inside, allowed)
    times = [
        part * _strong(jnp.where(group, found.hidden / error, 0))
        for part, error in parts
    ]
    apart = jnp.max(jnp.where(group, apart, 0))
    return worst, apart, jnp.concatenate(times, axis=1)


def _spread_of(moved: jax.Array, spread: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(moved) @ jnp.square(spread))


def _strong(sizes: jax.Array) -> jax.Array:
    """Returns a size that is no larger than the largest, and typical of the large."""
    scaled = sizes / jnp.maximum(jnp.max(jnp.abs(sizes)), 1e-30)
    squares = jnp.square(scaled)
    total = jnp.maximum(jnp.sum(squares), 1e-30)
    return jnp.max(jnp.abs(sizes)) * jnp.sqrt(jnp.sum(jnp.square(squares)) / total)


def evidence(strength: jax.Array) -> jax.Array:
    """Returns the logarithm of by how much equations narrow the logits down.

    Along each of the directions in which the equations depend on the logits at all,
    those that fit lie within sqrt(n) / singular value of one another, n the number of
    equations that matter: (sum of squares)^2 / sum of fourth powers. A loss that is
    saturated, or has one free direction as that of two classes, narrows down little.

    Args:
      strength: `[K, E]`, derivatives of the equations by the logits, over what is
        allowed.
    """
    scale = jnp.maximum(jnp.max(jnp.abs(strength)), 1e-30)  # squares may overflow
    scaled = strength / scale
    squares: Any = jnp.linalg.eigvalsh(scaled @ scaled.T)
    powers = jnp.sum(jnp.square(scaled), axis=0)
    fourth = jnp.maximum(jnp.sum(jnp.square(powers)), 1e-30)
    count = jnp.maximum(jnp.square(jnp.sum(powers)) / fourth, 1)
    # Below this the eigenvalues of a product are rounding.
    real = squares > 1e3 * jnp.finfo(strength.dtype).eps * squares[-1]
    narrower = jnp.log(jnp.where(real, squares, 1) / count) / 2 + jnp.log(scale)
    return jnp.sum(jnp.where(real, jnp.maximum(narrower, 0), 0))
