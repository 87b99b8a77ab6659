"""Peels a batch apart, image by image, each with a proof: Shariati and Alambardar
Meybodi (2026), "Cascading Gradient Inversion via LT-Code Inspired Peeling".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax import candidates, distances, exact, losses, matching, phases, updates
from invertjax.attacks.gauss_newton import gauss_newton
from invertjax.attacks.inputs_of_features import inputs_of_features
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
    Softened,
    Stop,
    Update,
)
from invertjax.exact import DenseRelu, Peeled

FIRST = 0.4  # of the steps, for the images of the features alone
SHARPNESS = (64.0, 256.0, math.inf)  # of the others, which start near the truth
TOTAL_VARIATION = 1e-5


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
    steps: int = 100,
    softened: Softened | None = None,
) -> Attack:
    """Reads images off the gradient of a dense layer with bias and relu, one by one.

    A unit that one image alone has moved gives its input, dW[:, j] / dc[j]; the input
    is proven by the slopes that the network has there with one of the labels, see
    `invertjax.exact.certificate`; and what it explains is subtracted, so that other
    units belong to one image. The labels of the candidate are not needed: each proven
    image comes with its own. The rest of the batch stays the candidate's start.

    Where the layer does not see pixels, as behind convolutions, what is exact are its
    inputs, the features of each image. Then least squares look for the image of each
    one's features, and for the batch that explains the whole update from there
    (`gauss_newton`); these images are near, and none is certified.

    Deviations from the paper: the layer may be anywhere; the next layer's gradient is
    used as well, so that one unit can be proven; and thresholds follow from the
    precision of the update.

    Args:
      share: `batch -> update`; scores the answer (`Result.loss` is the cosine distance
        of its update from the observed one; inside a network as of `gauss_newton`).
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
      steps: inside a network, linearisations, two of five for features alone.
      softened: see `gauss_newton`.

    Raises:
      ValueError: with the reason, where no layer of the network can be peeled, or if
        `observed` does not have the tree and shapes of what `share` returns.
    """
    observed = updates.checked(share, observed, candidate)
    shape = candidates.shapes(candidate)["image"].shape
    layer = exact.lowest(blocks, params, shape)

    def peeled() -> Peeled:
        return exact.peel(
            layer,
            params,
            observed,
            shape[0],
            loss=loss,
            num_classes=num_classes,
            weights=weights,
            noise=noise,
        )

    def images(features: jax.Array) -> jax.Array:
        if from_input is not None:
            return jax.vmap(from_input)(features).reshape(shape)
        return layer.pixels(params, features, shape)

    if layer.pixelwise:
        attack = _read(share, observed, candidate, peeled, images)
    else:
        inside = _Inside(share, observed, candidate, params, layer, softened, steps)
        attack = phases.prepared(peeled, inside.attack)
    return matching.in_full_precision(attack)


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


def _read(
    share: Share,
    observed: Update,
    candidate: Candidate,
    peeled: Callable[[], Peeled],
    images: Callable[[jax.Array], jax.Array],
) -> Attack:
    """Returns the attack on a layer that sees the pixels: there is nothing to solve."""

    def init(key: Key) -> tuple[Point, Peeled]:
        return candidate.init(key), peeled()

    def result(state: tuple[Point, Peeled]) -> Result:
        z, found = state
        start = candidate.decode(z)
        slots = _slots(start["label"], found)
        batch = slots.filled(start, images(found.features))
        value = distances.cosine(share(batch), observed)
        finite = jnp.isfinite(value)
        stopped = jnp.where(finite, Stop.BUDGET, Stop.NON_FINITE)
        value = jnp.where(finite, value, jnp.inf)
        return Result(
            batch, value, jnp.zeros(0), found.rounds, stopped, slots.certified
        )

    return Attack(init, lambda state, n: state, result, 0)


class _Inside(NamedTuple):
    """The attack on a layer behind others: from features to images, then together."""

    share: Share
    observed: Update
    candidate: Candidate
    params: Params
    layer: DenseRelu
    softened: Softened | None
    steps: int

    def attack(self, found: Peeled) -> Attack:
        first = max(1, round(FIRST * self.steps))
        shape = candidates.shapes(self.candidate)["image"].shape
        alone = inputs_of_features(
            lambda images: self.layer.enter(self.params, images),
            found.features,
            shape,
            apart=self.layer.alone,
            steps=first,
        )
        rest = max(1, self.steps - first)
        return phases.then(alone, lambda batch: self._together(found, batch, rest))

    def _together(self, found: Peeled, batch: Batch, steps: int) -> Attack:
        """Returns the attack on the whole update, from images that are near."""
        candidate = self.candidate
        known = candidate.decode(candidate.init(jax.random.key(0)))
        slots = _slots(known["label"], found)

        def start(key: Key) -> Point:
            z = candidate.init(key)
            return {**z, "image": slots.images(z["image"], batch["image"])}

        def decode(z: Point) -> Batch:
            return slots.labelled(candidate.decode(z))

        return gauss_newton(
            self.share,
            self.observed,
            candidate._replace(init=start, decode=decode),
            steps=steps,
            softened=self.softened,
            sharpness=SHARPNESS,
            total_variation=TOTAL_VARIATION,
        )


class _Slots(NamedTuple):
    """Where in the batch what was found is put.

    at: `[B]`, the place of each row that was found. there: `[B]` bool, which were.
    label: `[B]` int, of places. free: `[B]` bool, places that nothing was found for.
    certified: `[B]` bool, places.
    """

    at: jax.Array
    there: jax.Array
    label: jax.Array
    free: jax.Array
    certified: jax.Array

    def images(self, start: jax.Array, found: jax.Array) -> jax.Array:
        """Returns images `[B, ...]` in their places, and the start elsewhere."""
        at = jnp.where(self.there, self.at, len(start))
        return start.at[at].set(found.astype(start.dtype), mode="drop")

    def labelled(self, batch: Batch) -> Batch:
        """Returns a batch with the labels that were found, in the form of its own."""
        given = batch["label"]
        if given.ndim == 1:
            return {**batch, "label": self.label.astype(given.dtype)}
        hard = jax.nn.one_hot(self.label, given.shape[1], dtype=given.dtype)
        return {**batch, "label": jnp.where(self.free[:, None], given, hard)}

    def filled(self, batch: Batch, found: jax.Array) -> Batch:
        """Returns a batch with what was found."""
        return self.labelled({**batch, "image": self.images(batch["image"], found)})


def _slots(given: jax.Array, found: Peeled) -> _Slots:
    """Returns a place for each row: one that has its label, if one is left.

    given: labels of the batch, `[B]` int or `[B, K]`.
    """
    guess = given if given.ndim == 1 else jnp.argmax(given, axis=1)
    there = found.labels >= 0

    def place(i: jax.Array, slots: _Slots) -> _Slots:
        wanted = slots.free & (guess == found.labels[i])
        at = jnp.argmax(jnp.where(jnp.any(wanted), wanted, slots.free))
        label = jnp.where(there[i], found.labels[i], slots.label[at])
        return _Slots(
            slots.at.at[i].set(at),
            there,
            slots.label.at[at].set(label),
            slots.free.at[at].set(slots.free[at] & ~there[i]),
            slots.certified.at[at].set(slots.certified[at] | found.certified[i]),
        )

    every = jnp.ones(len(guess), bool)
    at = jnp.arange(len(guess))
    start = _Slots(at, there, guess.astype(jnp.int32), every, ~every)
    return jax.lax.fori_loop(0, len(guess), place, start)
