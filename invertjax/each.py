"""Several problems that know nothing of one another, as one attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax.base import Attack, Key, Result, uncertified


class Each(NamedTuple):
    """states: of all problems, `[B, ...]`."""

    states: Any

    @property
    def best_loss(self) -> jax.Array:
        """The mean of their objectives."""
        return jnp.mean(self.states.best_loss)


def each(make: Callable[[Any], Attack], items: Any) -> Attack:
    """Makes one attack of the attacks on several items, each with its own steps.

    Args:
      make: `item -> Attack` on one image, of a batch of one; the same steps for all.
      items: pytree of `[B, ...]`.

    Returns:
      An attack on the batch of all: its images are theirs, one after the other, its
      objective their mean, and it has stopped as the last of them has.
    """
    count = jax.tree.leaves(items)[0].shape[0]
    steps = make(jax.tree.map(lambda leaf: leaf[0], items)).steps
    # On CPUs one after the other is faster, and each ends by itself.
    side_by_side = count if jax.default_backend() != "cpu" else None

    def init(key: Key) -> Each:
        keys = jax.random.split(key, count)
        return Each(jax.vmap(lambda item, key: make(item).init(key))(items, keys))

    def advance(state: Each, n: jax.Array) -> Each:
        def one(given: tuple[Any, Any]) -> Any:
            item, own = given
            return make(item).advance(own, n)

        both = items, state.states
        return Each(jax.lax.map(one, both, batch_size=side_by_side))

    def result(state: Each) -> Result:
        found = jax.vmap(lambda item, own: make(item).result(own))(items, state.states)
        batch = jax.tree.map(lambda leaf: leaf[:, 0], found.batch)
        return Result(
            batch,
            jnp.mean(found.loss),
            jnp.mean(found.losses, axis=0),
            jnp.max(found.steps),
            jnp.max(found.stopped),
            uncertified(batch),
        )

    return Attack(init, advance, result, steps)
