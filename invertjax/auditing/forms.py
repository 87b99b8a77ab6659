"""What a saved update may be besides what it should be, and which of that fits.

It should be a gradient, or params before minus after local training. People also save
the other difference, the params themselves, or a multiple.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax  # pyright: ignore[reportMissingTypeStubs]  # optax has no types

from invertjax import leaves
from invertjax.auditing import programs, run
from invertjax.auditing.keys import Keys, again
from invertjax.auditing.preparing import Form, Prepared
from invertjax.auditing.situations import Target
from invertjax.auditing.watch import Watch
from invertjax.base import Arrays, Batch, Params, Row, Update
from invertjax.driver.cache import Cache

Make = Callable[[Update], Prepared]


def forms(
    keys: Keys,
    params: Params,
    update: Update,
    make: Make,
    scale_free: Make | None,
    cache: Cache,
) -> tuple[Form, ...]:
    """Returns what else an update may be, the likeliest first.

    Args:
      keys: of the audit.
      params, update: pytrees of one structure.
      make: prepares the attack on what the update is taken for.
      scale_free: prepares an attack that finds images whatever the scale of the
        update; None where the attack itself does.
      cache: of compiled functions.
    """

    params, update = leaves.floats(params), leaves.floats(update)

    def taken(words: str, update: Update) -> Form:
        def prepared(watch: Watch) -> Prepared:
            del watch  # who asks is told nothing before the attack
            return make(update)

        return Form(words, prepared)

    found = [
        taken("params after minus before, the other sign", _times(update, -1.0)),
    ]
    if _is_near(params, update):
        before_minus = jax.tree.map(_difference, params, update)
        found.insert(0, taken("the params after the training", before_minus))
    if scale_free is not None:
        found.append(_multiple(keys, update, make, scale_free, cache))
    return tuple(found)


def _times(tree: Update, factor: float) -> Update:
    def times(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return (factor * leaf).astype(leaf.dtype)

    return jax.tree.map(times, tree)


def _difference(a: Any, b: Any) -> np.ndarray:
    return np.asarray(a) - np.asarray(b)


def _is_near(params: Params, update: Update) -> bool:
    """Returns whether an update is closer to the params than to nothing."""

    def flat(tree: Any) -> np.ndarray:
        leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
        return np.concatenate(leaves)

    known = flat(params)
    return bool(np.linalg.norm(flat(update) - known) < 0.5 * np.linalg.norm(known))


def _multiple(
    keys: Keys, update: Update, make: Make, scale_free: Make, cache: Cache
) -> Form:
    """Returns the form of a multiple, measured by an attack that is free of scale."""

    def prepared(watch: Watch) -> Prepared:
        best, factor = np.inf, 1.0
        for sign in (1.0, -1.0):
            free = scale_free(_times(update, sign))
            for distance, scale in _measured(keys, free, watch, cache):
                if distance < best:
                    best, factor = distance, sign * scale
        return make(_times(update, factor))

    return Form("a multiple of it", prepared)


def _measured(
    keys: Keys, prepared: Prepared, watch: Watch, cache: Cache
) -> Iterator[tuple[float, float]]:
    """Yields the fit of what an attack finds, and by which factor its update is larger
    than the one observed."""
    found: list[tuple[Row, Arrays]] = []
    run.attack(again(keys), prepared, watch=watch.collecting(found), cache=cache)
    situation, row = prepared.situation, prepared.plan.row
    larger = programs.measured(situation, row, _larger, ("larger",), cache)
    for one, arrays in found:
        batch: Batch = {"image": arrays["image"], "label": arrays["label"]}
        factor = larger(0, batch)
        if one["fit"] is not None and np.isfinite(factor):
            yield one["fit"], factor


def _larger(target: Target) -> Callable[[Update, Update], jax.Array]:
    """Returns `(update, observed) -> []`, by which the second comes closest to it."""
    del target

    def larger(update: Update, observed: Update) -> jax.Array:
        dot: Callable[..., Any] = optax.tree.vdot
        return dot(update, observed) / dot(observed, observed)

    return larger
