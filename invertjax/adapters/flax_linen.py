"""Adapts models of Flax Linen."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from invertjax.adapters.adapted import Adapted, Buffers, Mode, own
from invertjax.adapters.arguments import needs_arguments, switches
from invertjax.base import Params


def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    *,
    arguments: Callable[[bool], Mapping[str, Any]] | None = None,
) -> Adapted:
    """Adapts a Flax Linen module with its variables.

        variables = MyNet().init(jax.random.key(0), images, train=False)
        loss_fn, params = adapters.from_linen(MyNet(), variables).loss(train=True)

    Args:
      module: a `linen.Module` that takes images `[B, H, W, C]`.
      variables: as `init` returns them: "params", and "batch_stats" and other
        collections, which become the buffers.
      arguments: `train -> keyword arguments` of the call, for a module that has names
        of its own for its modes. By default those of `train`, `training`,
        `is_training`, `deterministic` and `use_running_average` that it takes.

    Raises:
      ValueError: if there are no "params" in `variables`; if there are "batch_stats",
        and the call takes none of the names.
    """
    from flax import errors

    if "params" not in variables:
        raise ValueError(
            f"Expected variables with {sorted(variables)} to be those of module.init, "
            'with "params".'
        )
    params = variables["params"]
    buffers = {name: tree for name, tree in variables.items() if name != "params"}
    names = inspect.signature(module.__call__).parameters
    has = "batch_stats" in buffers
    if has and arguments is None and not switches(names, Mode(True)):
        raise needs_arguments(f"{type(module).__name__}.__call__", tuple(names))

    def call(
        params: Params, buffers: Buffers, inputs: tuple[Any, ...], mode: Mode
    ) -> tuple[Any, Buffers]:
        given = switches(names, mode) if arguments is None else arguments(mode.train)
        rngs = {} if mode.dropout is None else {"dropout": mode.dropout}
        try:
            outputs, moved = module.apply(
                {"params": params, **buffers},
                *inputs,
                **given,
                rngs=rngs,
                mutable=list(buffers) if mode.train else [],
            )
        except errors.InvalidRngError as error:
            raise ValueError(
                f"{type(module).__name__} draws at random in this mode: expected "
                "dropout=, the key of what the client drew."
            ) from error
        return outputs, {**buffers, **moved}

    params, buffers = jax.tree.map(jax.numpy.asarray, (params, buffers))
    return Adapted(
        "Flax Linen", params, buffers, call, own(params, buffers), batch_norm=has
    )
