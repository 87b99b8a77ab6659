"""Soteria: a pruned gradient of one dense layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from invertjax import clients, layers, trees
from invertjax.base import Batch, Client, Key, Params, Update
from invertjax.defenses import ranges

_OFFSET = 0.1  # from the authors' code: without it units that are off divide by zero
_BLOCK = 32  # units whose derivatives are computed at once


@clients.keeps_plain
def soteria(
    client: Client,
    features: Callable[[Params, jax.Array], jax.Array],
    path: str,
    share: jax.typing.ArrayLike,
) -> Client:
    """Makes a client that hides the units from which its images could be read best.

    With r = features(params, images) the input of a dense layer, the score of unit i is

        mean over examples of |d r_i / d image| / (|r_i| + 0.1)

    and exactly round(share F) rows of the layer's weight gradient become zero: those of
    the units with the least score, among equal ones those that come first. Its bias and
    all other layers are shared as they are. Sun et al. (2021), "Soteria: Provable
    Defense against Privacy Leakage in Federated Learning from Representation
    Perspective", section 4 and the authors' code. No guarantee: the mask is in plain
    sight, the other layers are enough, and an attacker who knows leaves this one out
    (Balunovic et al. 2022, section 5): `distances.masked` or `distances.without`.

    Deviations: |r_i|, where the code has r_i (the same for relu and sigmoid); a count,
    where the code has a percentile. With batch norm in training mode the examples
    depend on one another, and the derivative is that of the sum of r_i over the batch.

    Every call costs F reverse passes through `features`, 32 at a time. The mask has no
    derivative: an attack through this client sees it as constant.

    Args:
      client: `(params, batch, key) -> update`, sharing a gradient.
      features: `(params, images [B, H, W, C]) -> [B, F]`, the input of that layer.
      path: of the dense layer in the update, such as "layers/3"; weight `[F, out]`.
      share: `[]`, in [0, 1]; studies take .7 and .8.

    Raises:
      ValueError: on a number out of range; when called, if there is no dense layer with
        F inputs at `path`.
    """
    ranges.check("share", share, at_least=0, at_most=1)

    def defended(params: Params, batch: Batch, key: Key) -> Update:
        score = scores(features, params, batch["image"])
        update = client(params, batch, key)
        _check(update, path, score.size)
        return _without_rows(update, path, _least(score, share))

    return defended


def scores(
    features: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    images: jax.Array,
) -> jax.Array:
    """Returns the score of every unit, `[F]`, >= 0, without a derivative."""
    params, images = jax.lax.stop_gradient((params, images))
    values, pull = jax.vjp(lambda images: features(params, images), images)

    def norms(unit: jax.Array) -> jax.Array:
        """Returns |d r_unit / d image|, `[B]`."""
        chosen = jnp.zeros_like(values).at[:, unit].set(1)
        return jax.vmap(trees.norm)(pull(chosen)[0])

    units = jnp.arange(values.shape[1])
    slopes = jax.lax.map(norms, units, batch_size=_BLOCK)
    return jnp.mean(slopes.T / (jnp.abs(values) + _OFFSET), axis=0)


def _least(score: jax.Array, share: jax.typing.ArrayLike) -> jax.Array:
    """Marks exactly round(share F) units, `[F]`, those with the least score."""
    rank = jnp.argsort(jnp.argsort(score, stable=True), stable=True)
    return rank < jnp.round(jnp.asarray(share, jnp.float32) * score.size)


def _check(update: Update, path: str, size: int) -> None:
    weight = layers.get(update, path).weight
    if weight.shape[0] != size:
        raise ValueError(
            f"Expected path={path!r} with {weight.shape[0]} inputs to be the layer "
            f"that takes the {size} features."
        )


def _without_rows(update: Update, path: str, hidden: jax.Array) -> Update:
    def leaf_masked(where: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(where, simple=True, separator="/")
        if leaf.ndim != 2 or not name.startswith(f"{path}/"):
            return leaf
        return jnp.where(hidden[:, None], 0, leaf)

    return jax.tree_util.tree_map_with_path(leaf_masked, update)
