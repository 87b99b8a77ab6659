"""Networks that a defense has changed: a layer of its own before the last one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from invertjax.defenses.dropout import dropout
from invertjax.defenses.precode import precode
from invertjax.defenses.protection import Drawn, Parts, Rebuilt


def bottleneck(parts: Parts, width: int) -> Rebuilt:
    """Returns the network with the variational bottleneck of `precode`."""
    made = precode(*_known(parts), parts.size, width)
    behind = precode(_same, _known(parts)[1], parts.size, width)
    layers = ("bottleneck", f"model/{parts.path}")
    drawn = Drawn("noise", width, made.draw, jax.random.normal, _as_it_is, layers)
    return Rebuilt(made.loss_fn, drawn, made.init, "bottleneck", behind.apply)


def mask(parts: Parts, share: Any) -> Rebuilt:
    """Returns the network with `dropout` on its features."""
    made = dropout(*_known(parts), parts.size, share)
    start = jax.random.uniform
    drawn = Drawn("kept", parts.size, made.draw, start, lambda x: jnp.clip(x, 0, 1))
    return Rebuilt(made.loss_fn, drawn)


def _known(parts: Parts) -> tuple[Callable, Callable]:
    if parts.features is None or parts.head is None:
        raise ValueError(
            "Expected parts of the network, its features and head: this defense puts "
            "a layer of its own before the last one."
        )
    return parts.features, parts.head


def _same(params: Any, hidden: jax.Array) -> jax.Array:
    del params
    return hidden


def _as_it_is(entry: jax.Array) -> jax.Array:
    return entry
