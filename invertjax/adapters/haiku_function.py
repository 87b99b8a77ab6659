"""Adapts models of Haiku."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from invertjax.adapters.adapted import Adapted, Buffers, Mode, own
from invertjax.adapters.arguments import needs_arguments, switches
from invertjax.base import Params

FIRST = 3  # arguments of `apply` before the model's own: params, state, rng


def from_haiku(
    transformed: Any,
    params: Params,
    state: Any = None,
    *,
    arguments: Callable[[bool], Mapping[str, Any]] | None = None,
) -> Adapted:
    """Adapts what `hk.transform` or `hk.transform_with_state` returns.

        params, state = net.init(jax.random.key(0), images, is_training=True)
        loss_fn, params = adapters.from_haiku(net, params, state).loss(train=True)

    Args:
      transformed: of a function that takes images `[B, H, W, C]`.
      params: as `init` returns them.
      state: as `init` returns it, for `hk.transform_with_state`; None for
        `hk.transform`.
      arguments: `train -> keyword arguments` of the function, where it has names of its
        own for its modes. By default those of `is_training`, `training`, `train`,
        `deterministic` and others of their kind that it takes.

    Raises:
      ValueError: if there is a state, and the function takes none of the names.
    """
    names = inspect.signature(transformed.apply).parameters
    has = bool(state)
    if has and arguments is None and not switches(names, Mode(True)):
        raise needs_arguments("the function", tuple(names)[FIRST:])

    def call(
        params: Params, buffers: Buffers, inputs: tuple[Any, ...], mode: Mode
    ) -> tuple[Any, Buffers]:
        given = switches(names, mode) if arguments is None else arguments(mode.train)
        if state is None:
            return transformed.apply(params, mode.dropout, *inputs, **given), None
        return transformed.apply(params, buffers, mode.dropout, *inputs, **given)

    return Adapted("Haiku", params, state, call, own(params, state), batch_norm=has)
