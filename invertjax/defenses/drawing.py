"""Transforms that draw anew at every call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from invertjax import keys
from invertjax.base import Key, Params, Update


class NoiseState(NamedTuple):
    """The state of a transform that draws.

    key: a PRNG key, for the draws of the next update.
    """

    key: jax.Array


def keyed(
    key: Key, change: Callable[[Key, Update, Params | None], Update]
) -> optax.GradientTransformation:
    """Makes a transform of `change(key, updates, params)`, with a fresh key each call.

    Args:
      key: consumed.
      change: `(key, updates, params) -> updates`; the key is consumed.
    """

    key = keys.typed(key)

    def init(params: Params) -> NoiseState:
        del params
        return NoiseState(key)

    def update(
        updates: Update, state: Any, params: Params | None = None
    ) -> tuple[Update, NoiseState]:
        next_key, draw_key = jax.random.split(state.key)
        return change(draw_key, updates, params), NoiseState(next_key)

    return optax.GradientTransformation(init, update)
