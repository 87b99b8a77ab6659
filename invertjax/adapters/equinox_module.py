"""Adapts models of Equinox."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from invertjax.adapters.adapted import Adapted, Buffers, Mode, own
from invertjax.base import Params

BATCH = "batch"  # the name of the axis of a batch, if no batch norm has another


def from_equinox(
    module: Any, state: Any = None, *, channels_first: bool = True
) -> Adapted:
    """Adapts an Equinox module, with its state if it has one.

        model, state = eqx.nn.make_with_state(MyNet)(jax.random.key(0))
        loss_fn, params = adapters.from_equinox(model, state).loss(train=True)

    Args:
      module: takes one image, as Equinox's layers do, `module(image)`, and is mapped
        over the batch. Where its signature names `state` it is
        `module(image, state) -> (outputs, state)`; where it names `key`, it has that of
        its dropouts, one for each image.
      state: its `eqx.nn.State`.
      channels_first: whether it takes `[C, H, W]`, as `eqx.nn.Conv2d` does, or
        `[H, W, C]`.

    Returns:
      Params are the module's inexact arrays; everything else of it stays as it is. In
      train mode batch norms get the batch, in eval mode `inference=True`.

    Raises:
      ValueError: if the module takes a state and none is given.
    """
    import equinox as eqx

    params, rest = eqx.partition(module, eqx.is_inexact_array)
    named = inspect.signature(type(module).__call__).parameters
    if needs_state(type(module)) and state is None:
        raise ValueError(
            f"{type(module).__name__} takes a state: expected state=, as "
            "eqx.nn.make_with_state gives it."
        )
    has, axis = _batch_norms(module)

    def call(
        params: Params, buffers: Buffers, inputs: tuple[Any, ...], mode: Mode
    ) -> tuple[Any, Buffers]:
        running = _in_mode(eqx.combine(params, rest), mode)
        images = jnp.moveaxis(inputs[0], -1, 1) if channels_first else inputs[0]
        keys = None
        if mode.dropout is not None:
            keys = jax.random.split(mode.dropout, len(images))

        def one(key: Any, *arrays: Any) -> Any:
            given = {"key": key} if "key" in named else {}
            if buffers is None:
                return running(*arrays, **given), None
            return running(*arrays, state=_cloned(buffers), **given)

        # A batch norm makes one state of all; else the state passes as it is.
        mapped = jax.vmap(one, out_axes=(0, None), axis_name=axis)
        return mapped(keys, images, *inputs[1:])

    return Adapted("Equinox", params, state, call, own(params, state), batch_norm=has)


def needs_state(kind: type[Any]) -> bool:
    """Returns whether modules of a class cannot be called without a state."""
    found = inspect.signature(kind.__call__).parameters.get("state")
    return found is not None and found.default is found.empty


def _cloned(state: Any) -> Any:
    """Returns a state that may be used once more: Equinox forbids to use one twice."""
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, leaves)


def _batch_norms(module: Any) -> tuple[bool, Any]:
    """Returns whether there are batch norms, and the name of their axis."""
    import equinox as eqx

    def is_norm(node: Any) -> bool:
        return isinstance(node, eqx.nn.BatchNorm)

    found = [node for node in jax.tree.leaves(module, is_leaf=is_norm) if is_norm(node)]
    return bool(found), found[0].axis_name if found else BATCH


def _in_mode(module: Any, mode: Mode) -> Any:
    """Returns the module in a mode; its dropouts follow the key alone."""
    import equinox as eqx

    def is_dropout(node: Any) -> bool:
        return isinstance(node, eqx.nn.Dropout)

    def set_dropout(node: Any) -> Any:
        if not is_dropout(node):
            return node
        return eqx.nn.inference_mode(node, mode.dropout is None)

    module = eqx.nn.inference_mode(module, not mode.train)
    return jax.tree.map(set_dropout, module, is_leaf=is_dropout)
