"""The networks once more, in PyTorch, as functions of a problem's params.

Standalone: needs torch only. `FORWARD[name](params, images) -> logits` takes
normalised images `[B, C, H, W]`.
"""
# pyright: reportMissingImports=false

import functools

import torch
import torch.nn.functional as F


def from_problem(array) -> torch.Tensor:
    """A param: HWIO to OIHW, `[in, out]` to `[out, in]`, vectors as they are."""
    tensor = torch.from_numpy(array)
    if tensor.ndim == 4:
        tensor = tensor.permute(3, 2, 0, 1)
    elif tensor.ndim == 2:
        tensor = tensor.T
    return tensor.contiguous()


def _conv(params, name, x, stride=1):
    kernel = params[f"{name}/kernel"]
    padding = kernel.shape[-1] // 2
    return F.conv2d(x, kernel, params.get(f"{name}/bias"), stride, padding)


def _norm(params, name, x):
    if f"{name}/scale" not in params:
        return x
    scale, bias = params[f"{name}/scale"], params[f"{name}/bias"]
    return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)


def _dense(params, name, x):
    return F.linear(x, params[f"{name}/kernel"], params[f"{name}/bias"])


def _flat(x):
    """Channels last, as the dense kernels are written."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _mean(x):
    return x.mean((2, 3))


def _chain(
    params, x, *, strides, windows=None, hidden=0, act=torch.relu, reduce=_flat, pool
):
    """Convolution, norm, activation, pooling; then dense layers."""
    for i, stride in enumerate(strides):
        x = _conv(params, f"layers/{i}", x, stride)
        x = act(_norm(params, f"norms/{i}", x))
        if windows and windows[i] > 1:
            x = pool(x, windows[i])
    x, i = reduce(x), len(strides)
    for _ in range(hidden):
        x, i = act(_dense(params, f"layers/{i}", x)), i + 1
    return _dense(params, f"layers/{i}", x)


def _block(params, name, x, stride):
    def part(i, x, stride=1):
        y = _conv(params, f"{name}/layers/{i}", x, stride)
        return _norm(params, f"{name}/norms/{i}", y)

    shortcut = part(2, x, stride) if f"{name}/layers/2/kernel" in params else x
    return torch.relu(part(1, torch.relu(part(0, x, stride))) + shortcut)


def _resnet18(params, x):
    imagenet = params["stem/kernel"].shape[-1] == 7
    x = _conv(params, "stem", x, 2 if imagenet else 1)
    x = torch.relu(_norm(params, "stem_norm", x))
    if imagenet:
        x = F.max_pool2d(x, 3, 2, 1)
    for i, stride in enumerate((1, 1, 2, 1, 2, 1, 2, 1)):
        x = _block(params, f"blocks/{i}", x, stride)
    return _dense(params, "head", _mean(x))


FORWARD = {
    "lenet": functools.partial(
        _chain, strides=(2, 2, 1), act=torch.sigmoid, pool=F.avg_pool2d
    ),
    "cnn": functools.partial(
        _chain, strides=(1, 1), windows=(2, 2), hidden=1, pool=F.avg_pool2d
    ),
    "convnet5": functools.partial(
        _chain, strides=(1, 2, 1, 2, 1), reduce=_mean, pool=F.avg_pool2d
    ),
    "convnet": functools.partial(
        _chain, strides=(1,) * 8, windows=(1, 1, 1, 1, 1, 3, 1, 3), pool=F.max_pool2d
    ),
    "resnet18": _resnet18,
}
