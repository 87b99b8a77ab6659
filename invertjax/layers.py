"""Finding dense layers in a params tree, or in an update of the same structure."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax.base import Params


class Dense(NamedTuple):
    """A dense layer y = x W + c, or what an update says of it.

    path: where its arrays are, joined by "/"; "" at the root of the tree.
    weight: `[in, out]`, transposed if it is stored the other way.
    bias: `[out]`, or None.
    """

    path: str
    weight: jax.Array
    bias: jax.Array | None


def dense(params: Params, *, transposed: bool | None = None) -> list[Dense]:
    """Returns all dense layers, in the order of the tree.

    A dense layer is one 2-D array together with a 1-D array as long as one of its
    sides, both directly below the same node; or, without a bias, a 2-D array with
    the name `kernel` or `weight`. Several 2-D arrays at one node, as in recurrent
    cells, are no dense layer. The order of a tree is that of its keys (alphabetical
    in a dict), not that of the computation: `first` and `last` go by size.

    | stored weight                | read as                             |
    |------------------------------|-------------------------------------|
    | not square, with a bias      | the side as long as the bias is out |
    | named `kernel` (flax)        | `[in, out]`                         |
    | named `weight` (equinox, torch) | `[out, in]`                      |
    | square, any other name       | as `transposed` says, else an error |

    Args:
      params: any pytree of arrays: nested dicts, an `nnx.State`, an equinox module.
        Leaves that are
        no arrays of floats are skipped.
      transposed: True if square weights are stored `[out, in]`, False if `[in, out]`.

    Raises:
      ValueError: on a square weight of unknown orientation.
    """
    layers = (
        _layer(path, leaves, transposed) for path, leaves in _siblings(params).items()
    )
    return [layer for layer in layers if layer is not None]


def get(params: Params, path: str, *, transposed: bool | None = None) -> Dense:
    """Returns the dense layer at `path`, such as "layers/0"; see `dense`.

    Raises:
      ValueError: if there is none; names those that there are.
    """
    leaves = _siblings(params).get(path.removesuffix("/"))
    layer = None if leaves is None else _layer(path, leaves, transposed)
    if layer is None:
        known = _names(dense(params, transposed=transposed))
        raise ValueError(f"Expected path={path!r} to be a dense layer, one of {known}.")
    return layer


def first(
    params: Params,
    in_size: int,
    *,
    path: str | None = None,
    transposed: bool | None = None,
) -> Dense:
    """Returns the dense layer with `in_size` inputs, H*W*C say; or the one at `path`.

    Raises:
      ValueError: if no layer or several have this size, or the one at `path` has not.
    """
    return _unique(params, "in_size", in_size, 0, path, transposed)


def last(
    params: Params,
    num_classes: int | None = None,
    *,
    path: str | None = None,
    transposed: bool | None = None,
) -> Dense:
    """Returns the dense layer with `num_classes` outputs; or the one at `path`.

    With neither it is the layer that no other can follow: no other dense layer has as
    many inputs as this one has outputs.

    Raises:
      ValueError: if no layer or several have this size, or the one at `path` has not;
        with neither argument, if there is not exactly one such layer.
    """
    if num_classes is None:
        return _topmost(params, path, transposed)
    return _unique(params, "num_classes", num_classes, 1, path, transposed)


def _topmost(params: Params, path: str | None, transposed: bool | None) -> Dense:
    if path is not None:
        return get(params, path, transposed=transposed)
    layers = dense(params, transposed=transposed)
    found = [
        layer
        for layer in layers
        if not any(
            other.weight.shape[0] == layer.weight.shape[1]
            for other in layers
            if other is not layer
        )
    ]
    if len(found) != 1:
        raise ValueError(
            "Expected num_classes=... or path=... to say which of the dense layers "
            f"{_names(layers)} is the last."
        )
    return found[0]


def _unique(
    params: Params,
    name: str,
    size: int,
    axis: int,
    path: str | None,
    transposed: bool | None,
) -> Dense:
    if path is not None:
        layers = [get(params, path, transposed=transposed)]
    else:
        layers = dense(params, transposed=transposed)
    found = [layer for layer in layers if layer.weight.shape[axis] == size]
    side = ("inputs", "outputs")[axis]
    if not found:
        raise ValueError(
            f"Expected {name}={size} to be the {side} of a dense layer; "
            f"those looked at are {_names(layers)}."
        )
    if len(found) > 1:
        raise ValueError(
            f"Expected one dense layer with {name}={size} {side}, found "
            f"{_names(found)}; choose one with path=..."
        )
    return found[0]


def _siblings(params: Params) -> dict[str, dict[str, Any]]:
    """Returns the arrays by the path of their parent, then by name."""
    groups: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if hasattr(leaf, "ndim") and jnp.issubdtype(leaf.dtype, jnp.inexact):
            parent, _, name = _join(path).rpartition("/")
            groups.setdefault(parent, {})[name] = leaf
    return groups


def _join(path: tuple[Any, ...]) -> str:
    """Joins the keys by "/", less the `.value` that ends a path in an `nnx.State`."""
    box = path and path[-1] == jax.tree_util.GetAttrKey("value")
    return jax.tree_util.keystr(path[:-1] if box else path, simple=True, separator="/")


def _layer(path: str, leaves: dict[str, Any], transposed: bool | None) -> Dense | None:
    matrices = [name for name, leaf in leaves.items() if leaf.ndim == 2]
    if len(matrices) != 1:
        return None
    name = matrices[0]
    weight = leaves[name]
    bias = _bias(leaves, weight.shape)
    if bias is None and name not in ("kernel", "weight"):
        return None
    turn = _is_transposed(path, name, weight.shape, bias, transposed)
    return Dense(path, weight.T if turn else weight, bias)


def _bias(leaves: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """Returns the 1-D sibling that fits; if several do, the one named as a bias."""
    fitting = {k: v for k, v in leaves.items() if v.ndim == 1 and v.shape[0] in shape}
    named = [v for k, v in fitting.items() if k in ("bias", "b")]
    candidates = named or list(fitting.values())
    return candidates[0] if len(candidates) == 1 else None


def _is_transposed(
    path: str, name: str, shape: tuple[int, ...], bias: Any, transposed: bool | None
) -> bool:
    if bias is not None and shape[0] != shape[1]:
        return shape[0] == bias.shape[0]
    if name in ("kernel", "weight"):
        return name == "weight"
    if transposed is None:
        raise ValueError(
            f"Expected a name or shape that tells inputs from outputs, got {shape} at "
            f"path={path!r}, name={name!r}; say transposed=True if it is [out, in]."
        )
    return transposed


def _names(layers: list[Dense]) -> str:
    shapes = (f"{layer.path!r} {tuple(layer.weight.shape)}" for layer in layers)
    return "[" + ", ".join(shapes) + "]"
