"""Adapts models of PyTorch, which JAX runs through torchax."""
# pyright: reportMissingImports=false

import copy
import threading
from typing import Any

import jax
import jax.numpy as jnp

from invertjax.adapters.adapted import Adapted, Buffers, Mode, own
from invertjax.base import Params

# What is called has its arrays replaced meanwhile, and torchax has one mode for all.
_ONE_AT_A_TIME = threading.RLock()


def from_torch(module: Any, *, channels_first: bool = True) -> Adapted:
    """Adapts a PyTorch module.

        adapted = adapters.from_torch(torchvision.models.resnet18())
        loss_fn, params = adapted.loss(train=True)
        update = {name: p.grad.numpy() for name, p in module.named_parameters()}

    Args:
      module: a `torch.nn.Module`; it is copied, and stays as it is.
      channels_first: whether it takes `[B, C, H, W]`, as PyTorch's layers do; images
        and candidates of this library stay `[B, H, W, C]`.

    Returns:
      Params are the parameters that require a gradient, a dict by PyTorch's own names
      (`layer1.0.conv1.weight`), as an update has them; the buffers are all others and
      the module's buffers (`running_mean`, `num_batches_tracked`). There are no fresh
      weights: a module is one network.

    Raises:
      ModuleNotFoundError: without `invertjax[torch]`.
    """
    import torch
    import torchax

    env = torchax.default_env()
    training = copy.deepcopy(module).train()
    evaluating = copy.deepcopy(module).eval()
    arrays = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    moved = {name: p.requires_grad for name, p in module.named_parameters()}
    params, buffers = {}, {}
    for name, tensor in arrays.items():
        kept = params if moved.get(name) else buffers
        kept[name] = jnp.asarray(tensor.detach().cpu().numpy())

    def call(
        params: Params, buffers: Buffers, inputs: tuple[Any, ...], mode: Mode
    ) -> tuple[Any, Buffers]:
        with _ONE_AT_A_TIME:
            return alone(params, buffers, inputs, mode)

    def alone(
        params: Params, buffers: Buffers, inputs: tuple[Any, ...], mode: Mode
    ) -> tuple[Any, Buffers]:
        images = jnp.moveaxis(inputs[0], -1, 1) if channels_first else inputs[0]
        running = training if mode.train else evaluating
        _set_dropouts(running, mode.dropout is not None)
        given = jax.tree.map(jnp.asarray, (params, buffers, (images, *inputs[1:])))
        own_params, own_buffers, tensors = env.j2t_iso(given)
        drawn = jax.random.key(0) if mode.dropout is None else mode.dropout
        # PyTorch's operations promote ranks, whatever JAX is told to refuse.
        promoting = jax.numpy_rank_promotion("allow")
        seen = _Watched(running if mode.train else None)
        with seen, promoting, env, env.override_property(prng=drawn):
            outputs = torch.func.functional_call(
                running, {**own_params, **own_buffers}, tensors
            )
        outputs, moved, entered = env.t2j_iso((outputs, own_buffers, seen.entered))
        for name, features in entered:
            moved |= _moved(seen.norms[name], name, features, buffers)
        return outputs, moved

    has = any(isinstance(part, _batch_norms()) for part in module.modules())
    return Adapted(
        "PyTorch", params, buffers, call, own(params, buffers), batch_norm=has
    )


class _Watched:
    """While it is entered, collects what enters the batch norms of a module.

    torchax normalises by the statistics of the batch, and does not write them.
    """

    def __init__(self, module: Any):
        parts = [] if module is None else module.named_modules()
        self.norms = {
            name: part
            for name, part in parts
            if isinstance(part, _batch_norms()) and part.running_mean is not None
        }
        self.entered: list[tuple[str, Any]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for name, part in self.norms.items():

            def hook(part: Any, inputs: Any, name: str = name) -> None:
                self.entered.append((name, inputs[0]))

            self._hooks.append(part.register_forward_pre_hook(hook))

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()


def _moved(norm: Any, name: str, features: jax.Array, before: Buffers) -> Buffers:
    """Returns the running statistics of a batch norm after features `[B, C, ...]`."""
    axes = (0, *range(2, features.ndim))
    count = features.size // features.shape[1]
    share = norm.momentum
    if share is None:  # PyTorch's cumulative mean
        share = 1 / (before[f"{name}.num_batches_tracked"] + 1)
    statistics = {
        "running_mean": jnp.mean(features, axes),
        "running_var": jnp.var(features, axes) * count / max(count - 1, 1),
    }
    found = {}
    for kind, value in statistics.items():
        own_name = f"{name}.{kind}" if name else kind
        found[own_name] = (1 - share) * before[own_name] + share * value
    return found


def _batch_norms() -> Any:
    import torch

    return torch.nn.modules.batchnorm._BatchNorm


def _set_dropouts(module: Any, on: bool) -> None:
    """Turns dropouts on or off, whatever the module's mode is."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.train(on)
