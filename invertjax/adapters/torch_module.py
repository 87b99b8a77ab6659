"""Models of PyTorch, run by JAX through torchax."""
# pyright: reportMissingImports=false

import copy
from typing import Any

import jax
import jax.numpy as jnp

from invertjax.adapters.adapted import Adapted, Buffers, Mode, own
from invertjax.base import Params


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
        images = jnp.moveaxis(inputs[0], -1, 1) if channels_first else inputs[0]
        running = training if mode.train else evaluating
        _set_dropouts(running, mode.dropout is not None)
        given = jax.tree.map(jnp.asarray, (params, buffers, (images, *inputs[1:])))
        own_params, own_buffers, tensors = env.j2t_iso(given)
        drawn = jax.random.key(0) if mode.dropout is None else mode.dropout
        with env, env.override_property(prng=drawn):
            outputs = torch.func.functional_call(
                running, {**own_params, **own_buffers}, tensors
            )
        # In training, batch norms have written into the tensors of the buffers.
        return env.t2j_iso((outputs, own_buffers))

    has = any(isinstance(part, _batch_norms()) for part in module.modules())
    return Adapted(
        "PyTorch", params, buffers, call, own(params, buffers), batch_norm=has
    )


def _batch_norms() -> Any:
    import torch

    return torch.nn.modules.batchnorm._BatchNorm


def _set_dropouts(module: Any, on: bool) -> None:
    """Turns dropouts on or off, whatever the module's mode is."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.train(on)
