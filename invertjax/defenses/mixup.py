"""Images and labels mixed with others of their batch."""

from typing import Any

import jax
import jax.numpy as jnp

from invertjax import clients
from invertjax.base import Batch, Client, Key
from invertjax.defenses import ranges
from invertjax.defenses.transformed import transformed

_TRIES = 64


def mixup(
    client: Client,
    num_classes: int,
    *,
    count: int = 2,
    concentration: jax.typing.ArrayLike = 1.0,
    largest: jax.typing.ArrayLike = 1.0,
) -> Client:
    """Makes a client that trains on convex combinations of the images of its batch.

    x' = M x and y' = M y, y as probabilities, with a mixing matrix M `[B, B]` whose
    rows sum to 1 and have `count` entries. Row i mixes image i with `count - 1` others
    by weights from a Dirichlet distribution. Zhang et al. (2018), "mixup: Beyond
    Empirical Risk Minimization", section 2, has two images and weights from
    Beta(a, a), which is concentration a; of more images as a defense: Huang et al.
    (2020), "InstaHide".

    Every image is mixed into as many others as are mixed into it: the partners are
    those at distinct random distances around a random circle. Published code draws
    permutations independently, where an image may be its own partner.

    No guarantee: whoever knows M runs this client backwards, and `demixing.demix`
    undoes M unless it is singular.

    M is the entry "mixing" of the batch (`clients.randomised`).

    Args:
      client: `(params, batch, key) -> update`; of a loss that takes probabilities.
      num_classes: K, for labels that are integers.
      count: images in a mixture, 1 to B.
      concentration: > 0, `[]`, or `[count]` with that of image i first; below 1 most
        of the weight is on one image.
      largest: `[]`, in [1 / count, 1], the most that an image weighs. Weights are drawn
        again until they keep to it; after 64 draws they are equal.

    Raises:
      ValueError: on a number out of range; when called, on a batch below `count`.
    """
    ranges.check("count", count, at_least=1)
    ranges.check("concentration", concentration, above=0)
    ranges.check("largest", largest, at_least=1 / count, at_most=1)

    def draw(key: Key, batch: Batch) -> dict:
        size = len(batch["image"])
        if size < count:
            raise ValueError(f"Expected count={count} <= {size}, the batch's images.")
        partner_key, weight_key = jax.random.split(key)
        partners = _partners(partner_key, size, count)
        weights = _weights(weight_key, size, count, concentration, largest)
        rows = jnp.arange(size)[:, None]
        return {"mixing": jnp.zeros((size, size)).at[rows, partners].set(weights)}

    def mix(batch: Batch) -> Batch:
        rest = dict(batch)
        mixing, label = rest.pop("mixing"), batch["label"]
        if jnp.ndim(label) == 1:
            label = jax.nn.one_hot(label, num_classes, dtype=mixing.dtype)
        image = _product(mixing, batch["image"])
        return {**rest, "image": image, "label": _product(mixing, label)}

    return clients.randomised(transformed(client, mix), draw)


def _partners(key: Key, size: int, count: int) -> jax.Array:
    """Draws `[size, count]` distinct images a row, image i as the first of row i."""
    circle_key, distance_key = jax.random.split(key)
    circle = jax.random.permutation(circle_key, size)
    others = 1 + jax.random.permutation(distance_key, size - 1)[: count - 1]
    distances = jnp.concatenate([jnp.zeros(1, others.dtype), others])
    place = jnp.argsort(circle)
    return circle[(place[:, None] + distances[None]) % size]


def _weights(
    key: Key,
    size: int,
    count: int,
    concentration: jax.typing.ArrayLike,
    largest: jax.typing.ArrayLike,
) -> jax.Array:
    """Draws `[size, count]` weights, every row until it keeps to `largest`."""
    concentration = jnp.asarray(concentration, jnp.float32)
    alpha = jnp.broadcast_to(concentration, (count,))

    def over(weights: jax.Array) -> jax.Array:
        return jnp.max(weights, 1, keepdims=True) > largest

    def wanting(carry: Any) -> jax.Array:
        _, weights, tries = carry
        return jnp.any(over(weights)) & (tries < _TRIES)

    def again(carry: Any) -> Any:
        key, weights, tries = carry
        next_key, weight_key = jax.random.split(key)
        drawn = jax.random.dirichlet(weight_key, alpha, (size,))
        return next_key, jnp.where(over(weights), drawn, weights), tries + 1

    start = key, jnp.full((size, count), jnp.inf), 0
    _, weights, _ = jax.lax.while_loop(wanting, again, start)
    return jnp.where(over(weights), 1 / count, weights)


def _product(mixing: jax.Array, rows: jax.Array) -> jax.Array:
    product = jnp.einsum(
        "ij,j...->i...", mixing, rows, precision=jax.lax.Precision.HIGHEST
    )
    return product.astype(rows.dtype)
