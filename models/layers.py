"""The layers that the architectures share. Images and features are channels last."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.spec import Spec

MOMENTUM = 0.9  # PyTorch's default 0.1, which counts from the other end.
EPSILON = 1e-5

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    # The exact one, as in PyTorch, not the approximation by tanh.
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "leaky": jax.nn.leaky_relu,
}


class BatchNorm(nnx.Module):
    """Batch normalisation with running statistics: Ioffe and Szegedy (2015).

    y = scale (x - mean) / sqrt(var + 1e-5) + bias, over all axes but the last. Training
    takes mean and variance from the batch and moves the running ones to
    0.9 old + 0.1 batch; evaluation takes the running ones.

    It differs from `nnx.BatchNorm` in that gradients flow through the new statistics
    (a prior on them needs that), and in that the variance is computed in two passes,
    which does not cancel. The running variance is the biased one, as in flax; PyTorch
    keeps the unbiased.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.use_running_average = False
        self.momentum = MOMENTUM

    def __call__(self, features: jax.Array) -> jax.Array:
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            axes = tuple(range(features.ndim - 1))
            old_mean, old_var = mean, var
            mean, var = features.mean(axes), features.var(axes)
            keep = self.momentum
            self.mean[...] = keep * old_mean + (1 - keep) * mean
            self.var[...] = keep * old_var + (1 - keep) * var
        slope = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        centred = features - _broadcast(mean, features)
        return centred * _broadcast(slope, features) + _broadcast(
            self.bias[...], features
        )


class Identity(nnx.Module):
    """Returns its input, in the place of a norm."""

    def __call__(self, features: jax.Array) -> jax.Array:
        return features


def _group_norm(channels: int, groups: int, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=EPSILON, use_fast_variance=False, rngs=rngs
    )


def groups(channels: int) -> int:
    """Number of groups: at most 32, each of four channels or more (if there are four).

    Wu and He (2018) take 32 groups; networks here are often too narrow for that, and a
    group of one unit in a dense layer would be normalised to zero.
    """
    return math.gcd(32, channels, max(channels // 4, 1))


# "layer" is one group over height, width and channels: Wu and He (2018), section 3.1.
NORMS: dict[str, Callable[[int, nnx.Rngs], nnx.Module]] = {
    "none": lambda channels, rngs: Identity(),
    "batch": lambda channels, rngs: BatchNorm(channels),
    "group": lambda channels, rngs: _group_norm(channels, groups(channels), rngs),
    "layer": lambda channels, rngs: _group_norm(channels, 1, rngs),
}


def _wide(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


# Weights, biases. Scales and offsets of normalisations always start at one and zero.
INITS: dict[str, tuple[Any, Any]] = {
    "default": (
        jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
        jax.nn.initializers.zeros,
    ),
    "wide": (_wide, _wide),
}


def norm(spec: Spec, channels: int, rngs: nnx.Rngs) -> Any:
    """The normalisation that `spec` asks for."""
    return NORMS[spec.norm](channels, rngs)


def dense(spec: Spec, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with a bias, initialised as `spec` asks for."""
    kernel_init, bias_init = INITS[spec.init]
    return nnx.Linear(
        inputs, outputs, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs
    )


def convolution(
    spec: Spec,
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    *,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = True,
) -> nnx.Conv:
    """A square convolution, padded by `kernel // 2` on every side.

    So `n` pixels become `ceil(n / stride)`. ("SAME" would pad strided convolutions more
    on the right than on the left, which published networks do not.)
    """
    kernel_init, bias_init = INITS[spec.init]
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=(stride, stride),
        padding=[(kernel // 2, kernel // 2)] * 2,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        rngs=rngs,
    )


def normalise(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """(images - mean) / std, with one mean and one standard deviation a channel."""
    offset, scale = (
        _broadcast(jnp.asarray(c, images.dtype), images) for c in (mean, std)
    )
    return (images - offset) / scale


def pool(features: jax.Array, window: int, reduce: Callable) -> jax.Array:
    """Reduces windows that do not overlap; rows and columns left over are dropped.

    A reshape, because second derivatives of windowed reductions are slow on CPUs.

    Args:
      features: `[B, H, W, C]`, H and W at least `window`.
      window: side of the square windows, in pixels.
      reduce: `mean` or `maximum` of this module: one axis to nothing.

    Returns:
      `[B, H // window, W // window, C]`.
    """
    if window == 1:
        return features
    batch, height, width, channels = features.shape
    rows, columns = height // window, width // window
    kept = features[:, : rows * window, : columns * window]
    tiles = kept.reshape(batch, rows, window, columns, window, channels)
    return reduce(reduce(tiles, 4), 2)


def mean(features: jax.Array, axis: int) -> jax.Array:
    """The mean over one short axis. (Sums of slices: XLA's own are slow on CPUs.)"""
    slices = _slices(features, axis)
    return functools.reduce(jnp.add, slices) / len(slices)


def maximum(features: jax.Array, axis: int) -> jax.Array:
    """The maximum over one short axis; the gradient goes to the first of equals.

    Not `jnp.max`, whose derivative looks for the entries that equal the maximum: where
    XLA computes an entry twice and rounds it in two ways (a product and a sum, or both
    at once), none does, and the gradient is lost, or 0 / 0.
    """
    return functools.reduce(_larger, _slices(features, axis))


def _slices(features, axis):
    return [
        jax.lax.index_in_dim(features, i, axis, keepdims=False)
        for i in range(features.shape[axis])
    ]


def _larger(a, b):
    return jnp.where(a >= b, a, b)


def max_pool_3x3(features: jax.Array) -> jax.Array:
    """Maxima of 3x3 windows, two pixels apart, padded by one: `n` become `ceil(n / 2)`.

    Written as maxima of strided slices, one axis after the other; see `pool`.
    """
    for axis in (1, 2):
        size = features.shape[axis]
        padding = [(0, 0)] * features.ndim
        padding[axis] = (1, 1)
        padded = jnp.pad(features, padding, constant_values=-jnp.inf)
        slices = [
            jax.lax.slice_in_dim(padded, i, i + size, stride=2, axis=axis)
            for i in range(3)
        ]
        features = functools.reduce(_larger, slices)
    return features


def _broadcast(vector: jax.Array, features: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (features.ndim - 1) + (-1,))
