"""Peels a batch apart, image by image, each with a proof: Shariati and Alambardar
Meybodi (2026), "Cascading Gradient Inversion via LT-Code Inspired Peeling".
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from invertjax import candidates, distances, exact, losses, matching, updates
from invertjax.base import (
    Attack,
    Batch,
    Block,
    Candidate,
    Key,
    Params,
    Point,
    Result,
    Share,
    Stop,
    Update,
)
from invertjax.exact import Peeled


def peeling(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    params: Params,
    blocks: Sequence[Block],
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy,
    num_classes: int | None = None,
    weights: Any = None,
    noise: Any = 0.0,
    from_input: Callable[[jax.Array], jax.Array] | None = None,
) -> Attack:
    """Reads images off the gradient of a dense layer with bias and relu, one by one.

    A unit that one image alone has moved gives its input, dW[:, j] / dc[j]; the input
    is proven by the slopes that the network has there with one of the labels, see
    `invertjax.exact.certificate`; and what it explains is subtracted, so that other
    units belong to one image. The labels of the candidate are not needed: each proven
    image comes with its own. The rest of the batch stays the candidate's start. Where
    the layer does not see pixels, as behind convolutions, `exact.peel` gives its
    inputs, and no image is found here.

    Deviations from the paper: the layer may be anywhere; the next layer's gradient is
    used as well, so that one unit can be proven; and thresholds follow from the
    precision of the update.

    Args:
      share: `batch -> update`; scores the answer (`Result.loss` is the cosine distance
        of its update from the observed one).
      observed: one gradient of a mean or, with weights, of a sum; no local steps.
      candidate: of the batch; its z is a dict.
      params: of the network.
      blocks: `(params, features) -> features` each, from images to logits.
      loss: `(logits, labels) -> []`.
      num_classes: K. Default: the number of logits.
      weights: `[M]`, what an image may count in the update. Default: 1 / B.
      noise: standard deviation of noise in the update, where it is known.
      from_input: `[D] -> [H*W*C]`, from the layer's input to pixels. Default: undoes
        what the network does before the layer.

    Raises:
      ValueError: with the reason, where no layer of the network can be peeled, or if
        `observed` does not have the tree and shapes of what `share` returns.
    """
    observed = updates.checked(share, observed, candidate)
    shape = candidates.shapes(candidate)["image"].shape
    layer = exact.lowest(blocks, params, shape)
    options = {"loss": loss, "num_classes": num_classes}
    options |= {"weights": weights, "noise": noise}

    def images(features: jax.Array) -> jax.Array:
        if from_input is not None:
            return jax.vmap(from_input)(features).reshape(shape)
        return layer.pixels(params, features, shape)

    def init(key: Key) -> tuple[Point, Peeled]:
        return candidate.init(key), exact.peel(
            layer, params, observed, shape[0], **options
        )

    def result(state: tuple[Point, Peeled]) -> Result:
        z, peeled = state
        batch, certified = candidate.decode(z), jnp.zeros(shape[0], bool)
        if layer.pixelwise:
            batch, certified = _placed(batch, images(peeled.features), peeled)
        value = distances.cosine(share(batch), observed)
        finite = jnp.isfinite(value)
        stopped = jnp.where(finite, Stop.BUDGET, Stop.NON_FINITE)
        value = jnp.where(finite, value, jnp.inf)
        return Result(batch, value, jnp.zeros(0), peeled.rounds, stopped, certified)

    return matching.in_full_precision(Attack(init, lambda state, n: state, result, 0))


def refuses_peeling(
    blocks: Sequence[Block], params: Params, shape: tuple[int, ...]
) -> str | None:
    """Returns why a network cannot be peeled, None where it can.

    Args:
      blocks: of the network, from images to logits.
      params: of the network, or their shapes.
      shape: `(B, H, W, C)`.
    """
    try:
        exact.lowest(blocks, params, shape)
    except ValueError as error:
        return str(error)
    return None


def _placed(batch: Batch, images: jax.Array, peeled: Peeled) -> tuple[Batch, jax.Array]:
    """Returns a batch with the images that were found, each in a place that has its
    label if one is left, with their labels; and the places that are certified."""
    given = batch["label"]
    guess = given if given.ndim == 1 else jnp.argmax(given, axis=1)

    def place(
        i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        found, labels, free, certified = state
        wanted = free & (guess == peeled.labels[i])
        at = jnp.argmax(jnp.where(jnp.any(wanted), wanted, free))
        there = peeled.labels[i] >= 0
        return (
            found.at[at].set(jnp.where(there, images[i], found[at])),
            labels.at[at].set(jnp.where(there, peeled.labels[i], labels[at])),
            free.at[at].set(free[at] & ~there),
            certified.at[at].set(certified[at] | peeled.certified[i]),
        )

    every = jnp.ones(len(guess), bool)
    start = batch["image"], guess.astype(jnp.int32), every, ~every
    found = jax.lax.fori_loop(0, len(guess), place, start)
    image, label, free, certified = found
    if given.ndim == 1:
        label = label.astype(given.dtype)
    else:
        hard = jax.nn.one_hot(label, given.shape[1], dtype=given.dtype)
        label = jnp.where(free[:, None], given, hard)
    return {**batch, "image": image.astype(batch["image"].dtype), "label": label}, (
        certified
    )
