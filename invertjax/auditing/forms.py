"""What a saved update may be in place of a gradient, and which of that fits.

It should be a gradient, or params before minus after local training. People also save
the other difference, the params themselves, or a multiple.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import leaves, trees
from invertjax.auditing import attackers, programs, run
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.keys import Keys, again
from invertjax.auditing.preparing import Form, Prepared
from invertjax.auditing.situations import Target
from invertjax.auditing.watch import Watch
from invertjax.base import Arrays, Batch, Params, Row, Update
from invertjax.driver.cache import Cache

Make = Callable[[Update, Attacker], Prepared]


def prepared(
    keys: Keys,
    params: Params,
    update: Update,
    row: Attacker,
    make: Make,
    cache: Cache,
) -> Prepared:
    """Returns an attack on an update, with the forms that the update may have instead.

    Args:
      keys: of the audit.
      params, update: pytrees of one structure.
      row: of the attack.
      make: `(update, row) -> Prepared`, asked for other forms and other attacks, too.
      cache: of compiled functions.
    """
    found = _forms(keys, leaves.floats(params), leaves.floats(update), row, make, cache)
    return make(update, row)._replace(forms=found)


def _forms(
    keys: Keys,
    params: Params,
    update: Update,
    row: Attacker,
    make: Make,
    cache: Cache,
) -> tuple[Form, ...]:
    """Returns the other forms that an update may have, the likeliest first."""

    def taken(words: str, update: Update) -> Form:
        def prepared(watch: Watch) -> Prepared:
            del watch  # nobody is told before the attack
            return make(update, row)

        return Form(words, prepared)

    found = [
        taken("params after minus before, the other sign", _times(update, -1.0)),
    ]
    if _is_near(params, update):
        before_minus = jax.tree.map(_difference, params, update)
        found.insert(0, taken("the params after the training", before_minus))
    if not row.scale_free:
        found.append(_multiple(keys, update, row, make, cache))
    return tuple(found)


def _times(tree: Update, factor: float) -> Update:
    def times(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return (factor * leaf).astype(leaf.dtype)

    return jax.tree.map(times, tree)


def _difference(a: Any, b: Any) -> np.ndarray:
    return np.asarray(a) - np.asarray(b)


def _is_near(params: Params, update: Update) -> bool:
    """Returns whether an update is closer to the params than to zero."""

    def flat(tree: Any) -> np.ndarray:
        parts = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
        return np.concatenate(parts)

    known = flat(params)
    return bool(np.linalg.norm(flat(update) - known) < 0.5 * np.linalg.norm(known))


def _multiple(
    keys: Keys, update: Update, row: Attacker, make: Make, cache: Cache
) -> Form:
    """Returns the form of a multiple, measured by an attack that is free of scale."""

    def prepared(watch: Watch) -> Prepared:
        best, factor = np.inf, 1.0
        for sign in (1.0, -1.0):
            free = make(_times(update, sign), attackers.SCALE_FREE)
            for distance, scale in _measured(keys, free, watch, cache):
                if distance < best:
                    best, factor = distance, sign * scale
        return make(_times(update, factor), row)

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
        update, factor = trees.scaled(update)  # squares of large ones overflow
        observed, other = trees.scaled(observed)
        ratio = _dot(update, observed) / _dot(observed, observed)
        return ratio * (other / factor)

    return larger


def _dot(a: Update, b: Update) -> jax.Array:
    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(x * y)

    return trees.total(jax.tree.map(one, a, b))
