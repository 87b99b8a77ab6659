"""One attack after another, as one attack: the next starts where the first ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax.base import Attack, Batch, Key, Result


class Prepared(NamedTuple):
    """known: what was computed before the first step. state: of the attack."""

    known: Any
    state: Any

    @property
    def best_loss(self) -> jax.Array:
        """The objective of the attack."""
        return self.state.best_loss


def prepared(known: Callable[[], Any], make: Callable[[Any], Attack]) -> Attack:
    """Makes an attack that computes something once, before its first step.

    Args:
      known: returns a pytree of arrays.
      make: `known -> Attack`, whose budget does not depend on the values.
    """
    shapes = jax.eval_shape(known)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def init(key: Key) -> Prepared:
        found = known()
        return Prepared(found, make(found).init(key))

    def advance(state: Prepared, n: jax.Array) -> Prepared:
        return state._replace(state=make(state.known).advance(state.state, n))

    def result(state: Prepared) -> Result:
        return make(state.known).result(state.state)

    return Attack(init, advance, result, make(zeros).steps)


class Phases(NamedTuple):
    """Two attacks between two steps.

    first, second: their states; the second's is of no use before the first has ended.
    start: the batch that the second starts from. key: bits, for its start.
    begun: `[]` bool, whether it has. taken: `[]` int32, steps of the first's budget
    that have gone by.
    """

    first: Any
    second: Any
    start: Batch
    key: jax.Array
    begun: jax.Array
    taken: jax.Array

    @property
    def best_loss(self) -> jax.Array:
        """The objective of the one whose turn it is."""
        return jnp.where(self.begun, self.second.best_loss, self.first.best_loss)


def then(first: Attack, second: Callable[[Batch], Attack]) -> Attack:
    """Makes one attack of two; its steps are those of both.

    Args:
      first: of at least a step; takes its budget, or fewer steps if it has converged.
      second: `batch -> Attack`, what follows from the batch that the first has found;
        its budget does not depend on the batch.

    Returns:
      An attack whose result is the second's; where that has not begun, its start from
      the best that the first has found so far.
    """
    blank = jax.eval_shape(lambda: _batch(first))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), blank)
    steps = first.steps + second(zeros).steps

    def begin(state: Any, bits: jax.Array) -> tuple[Batch, Any]:
        start = first.result(state).batch
        return start, second(start).init(jax.random.wrap_key_data(bits))

    def init(key: Key) -> Phases:
        own, later = jax.random.split(key)
        state, bits = first.init(own), jax.random.key_data(later)
        start, after = begin(state, bits)
        none = jnp.array(0, jnp.int32)
        return Phases(state, after, start, bits, jnp.array(False), none)

    def advance(state: Phases, n: jax.Array) -> Phases:
        now = jnp.minimum(n, first.steps - state.taken).astype(jnp.int32)
        found, taken = first.advance(state.first, now), state.taken + now
        begins = ~state.begun & (taken >= first.steps)
        start, after = jax.lax.cond(
            begins,
            lambda: begin(found, state.key),
            lambda: (state.start, state.second),
        )
        begun = state.begun | begins
        after = second(start).advance(after, jnp.where(begun, n - now, 0))
        return Phases(found, after, start, state.key, begun, taken)

    def result(state: Phases) -> Result:
        early = first.result(state.first)
        start, after = jax.lax.cond(
            state.begun,
            lambda: (state.start, state.second),
            lambda: begin(state.first, state.key),
        )
        late = second(start).result(after)
        losses = jnp.concatenate([early.losses, late.losses])
        return late._replace(losses=losses, steps=early.steps + late.steps)

    return Attack(init, advance, result, steps)


def _batch(attack: Attack) -> Batch:
    return attack.result(attack.init(jax.random.key(0))).batch
