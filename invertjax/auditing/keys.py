"""All that is random in an audit."""

from typing import Any, NamedTuple

import jax

from invertjax.base import Key
from invertjax.keys import typed

SECOND = 2  # folded into the keys of an attack for those of a second one
_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown


class Keys(NamedTuple):
    """What is random in an audit of N updates with R restarts.

    clients, labels: `[N]` keys. attack: `[N, R]`. control: `[1, R]`. noise: `[]`, of
    images in the place of public ones. host: a seed of NumPy's.
    """

    clients: Key
    labels: Key
    attack: Key
    control: Key
    noise: Key
    host: int


def again(keys: Keys) -> Keys:
    """Returns the same keys once more, for a second attack from the same start."""
    arrays: list[Key] = [_jax.random.clone(one) for one in keys[:-1]]
    clients, labels, attack, control, noise = arrays
    return Keys(clients, labels, attack, control, noise, keys.host)


def second(keys: Keys) -> Key:
    """Returns keys `[N, R]` for a second attack, from other starts."""

    def other(key: Key) -> Key:
        return jax.random.fold_in(key, SECOND)

    return jax.vmap(jax.vmap(other))(_jax.random.clone(keys.attack))


def keys_of(key: Key, count: int, restarts: int) -> Keys:
    """Splits a key, which is consumed, for an audit of `count` updates."""
    own = jax.random.split(typed(key), 6)
    return Keys(
        jax.random.split(own[0], count),
        jax.random.split(own[1], count),
        jax.random.split(own[2], (count, restarts)),
        jax.random.split(own[3], (1, restarts)),
        own[4],
        int(jax.random.bits(own[5])),
    )
