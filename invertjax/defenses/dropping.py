"""Layers that are not shared."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invertjax.base import Params, Update
from invertjax.defenses import ranges


def drop(
    count: jax.typing.ArrayLike, *, order: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Shares zeros for the first `count` layers.

    A layer is the arrays directly below one node of the tree. Layers come in the order
    of their paths, with numbers as numbers: `layers/9` before `layers/10`, and both
    before `norms/0`, which is a layer of its own. The tree does not know the order of
    computation; where paths do not tell it, `order` does. Stands for frozen layers and
    embeddings, and for clients that keep their first layers to themselves: Liang et al.
    (2020), "Think Locally, Act Globally".

    No guarantee: what the other layers share is exact, and an attacker compares those
    alone (`distances.masked`).

    Args:
      count: `[]`, >= 0; zeros alone from the number of layers on.
      order: paths that come first, each with all below it. In a ResNet, whose stem is
        not the first in the alphabet: `("stem", "stem_norm")`.

    Raises:
      ValueError: on a number out of range; when called, on a path that is not there.
    """
    ranges.check("count", count, at_least=0)

    def dropped(updates: Update, params: Params | None = None) -> Update:
        del params

        def leaf_dropped(leaf: jax.Array, position: Any) -> jax.Array:
            return jnp.where(position < count, jnp.zeros_like(leaf), leaf)

        return jax.tree.map(leaf_dropped, updates, _positions(updates, order))

    return optax.stateless(dropped)


def _positions(updates: Update, order: Sequence[str]) -> Any:
    """Returns for every leaf the number of its layer."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(updates)[0]]
    layers = [_layer(path) for path in paths]
    for path in order:
        if not any(_inside(layer, path) for layer in layers):
            raise ValueError(
                f"Expected order={path!r} to be one of {sorted(set(layers))}."
            )
    ordered = sorted(set(layers), key=lambda layer: _rank(layer, order))
    positions = {layer: i for i, layer in enumerate(ordered)}
    return jax.tree.unflatten(
        jax.tree.structure(updates), [positions[layer] for layer in layers]
    )


def _layer(path: tuple[Any, ...]) -> str:
    """Returns `layers/0` of `layers/0/kernel`, even if an `nnx.State` adds `.value`."""
    box = path and path[-1] == jax.tree_util.GetAttrKey("value")
    parent = path[: -2 if box else -1]
    return jax.tree_util.keystr(parent, simple=True, separator="/")


def _rank(layer: str, order: Sequence[str]) -> tuple[int, tuple]:
    inside = (i for i, path in enumerate(order) if _inside(layer, path))
    parts = (re.split(r"(\d+)", name) for name in layer.split("/"))
    # The parts at odd positions are numbers; those at even ones, maybe empty, are not.
    natural = tuple(
        tuple(int(part) if i % 2 else part for i, part in enumerate(split))
        for split in parts
    )
    return next(inside, len(order)), natural


def _inside(layer: str, path: str) -> bool:
    return f"{layer}/".startswith(f"{path}/")
