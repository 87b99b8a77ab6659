"""Adapts models of Flax NNX."""

from collections.abc import Callable
from typing import Any

import jax

from invertjax.adapters.adapted import Adapted, Buffers, Mode, own
from invertjax.base import Key, Params


def from_nnx(model: Any) -> Adapted:
    """Adapts a Flax NNX module, or the function or class that makes one.

        adapted = adapters.from_nnx(MyNet(rngs=nnx.Rngs(0)))
        loss_fn, params = adapted.loss(train=True)

    Args:
      model: an `nnx.Module` that takes images `[B, H, W, C]`; or a function
        `rngs -> nnx.Module`, whose `init` then makes fresh weights. Its own weights are
        those of `nnx.Rngs(0)`.

    Returns:
      Params and buffers are plain nested dicts of the `nnx.Param` and `nnx.BatchStat`
      variables; variables of other kinds stay as they are. Batch norms and dropouts are
      set by their attributes `use_running_average` and `deterministic`, as
      `Module.train` and `Module.eval` do; where a module fixes them in its calls, that
      stands.
    """
    from flax import nnx

    make = None if isinstance(model, nnx.Module) else model
    module = make(nnx.Rngs(0)) if make else model

    def split(module: Any) -> tuple[Any, Params, Buffers, Any]:
        graph, params, buffers, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
        return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers), rest

    graph, params, buffers, rest = split(module)

    def call(
        params: Params, buffers: Buffers, inputs: tuple[Any, ...], mode: Mode
    ) -> tuple[Any, Buffers]:
        arrays = jax.tree.map(jax.numpy.asarray, buffers)
        # Without a copy, what the module writes would go into a trace that has ended.
        running = nnx.merge(graph, params, arrays, rest, copy=True)
        _set_modes(running, mode)
        outputs = running(*inputs)
        return outputs, nnx.to_pure_dict(nnx.state(running, nnx.BatchStat))

    def fresh(key: Key) -> tuple[Params, Buffers]:
        assert make is not None
        return split(make(nnx.Rngs(key)))[1:3]

    init: Callable[[Key], tuple[Params, Buffers]] = own(params, buffers)
    has = bool(jax.tree.leaves(buffers))
    return Adapted(
        "Flax NNX", params, buffers, call, fresh if make else init, bool(make), has
    )


def _set_modes(module: Any, mode: Mode) -> None:
    from flax import nnx

    module.set_attributes(
        use_running_average=not mode.train,
        deterministic=mode.dropout is None,
        raise_if_not_found=False,
    )
    if mode.dropout is not None:
        nnx.reseed(module, default=mode.dropout, dropout=mode.dropout)
