"""Convolutions, then dense layers: the form of every network here without shortcuts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from flax import nnx

from models import layers
from models.spec import Spec


class Step(NamedTuple):
    """One convolution: its channels, kernel side, stride, and the pooling after it."""

    channels: int
    kernel: int = 3
    stride: int = 1
    window: int = 1


class Chain(nnx.Module):
    """Convolution - norm - activation - pooling, ..., then dense layers.

    Hidden dense layers, too, are followed by norm and activation; the last one by
    nothing. Parameters: `layers/i` in order, and `norms/i` after `layers/i`.

    Args:
      spec: see `Spec`.
      rngs: initialises the layers.
      steps: the convolutions.
      hidden: units of the hidden dense layers.
      reduce: how windows are pooled, `layers.mean` or `layers.maximum`.
      flatten: dense layers see every pixel if true, else the mean over pixels.

    Raises:
      ValueError: the image is too small for the pooling.
    """

    def __init__(
        self,
        spec: Spec,
        rngs: nnx.Rngs,
        *,
        steps: Sequence[Step] = (),
        hidden: Sequence[int] = (),
        reduce: Callable = layers.mean,
        flatten: bool = True,
    ):
        height, width, channels = _shape_after(steps, spec.image_shape)
        widths = [height * width * channels if flatten else channels, *hidden]
        inputs = [spec.image_shape[2], *(step.channels for step in steps)]
        self.layers = nnx.List(
            [
                layers.convolution(
                    spec, i, s.channels, rngs, kernel=s.kernel, stride=s.stride
                )
                for i, s in zip(inputs, steps, strict=False)
            ]
            + [
                layers.dense(spec, i, o, rngs)
                for i, o in zip(widths, [*hidden, spec.num_classes], strict=True)
            ]
        )
        outputs = [*inputs[1:], *hidden]
        self.norms = nnx.List([layers.norm(spec, o, rngs) for o in outputs])
        self.activation = layers.ACTIVATIONS[spec.activation]
        self.windows = tuple(step.window for step in steps)
        self.reduce = reduce
        self.flatten = flatten

    @property
    def last(self) -> str:
        """The path of the last dense layer in the params."""
        return f"layers/{len(self.layers) - 1}"

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.layers)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`[B, H, W, C]` normalised images to `[B, num_classes]` logits."""
        return self.head(self.features(images))

    def features(self, images: jax.Array) -> jax.Array:
        """`[B, H, W, C]` normalised images to the last layer's input, `[B, F]`."""
        features = images
        for i in range(self.depth - 1):
            features = self.block(i, features)
        return self._entering(self.depth - 1, features)

    def head(self, features: jax.Array) -> jax.Array:
        """`[B, F]` inputs of the last layer to `[B, num_classes]` logits."""
        return self.layers[-1](features)

    def block(self, i: int, features: jax.Array) -> jax.Array:
        """Layer i with its norm, activation and pooling; the last has none."""
        features = self._entering(i, features)
        if i == self.depth - 1:
            return self.head(features)
        features = self.activation(self.norms[i](self.layers[i](features)))
        if i < len(self.windows):
            features = layers.pool(features, self.windows[i], self.reduce)
        return features

    def _entering(self, i: int, features: jax.Array) -> jax.Array:
        """The first dense layer sees vectors."""
        if i != len(self.windows):
            return features
        if self.flatten:
            return features.reshape(features.shape[0], -1)
        return features.mean((1, 2))


def _shape_after(
    steps: Sequence[Step], image_shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    height, width, channels = image_shape
    for step in steps:
        height, width = (-(-n // step.stride) // step.window for n in (height, width))
        channels = step.channels
    if min(height, width) < 1:
        raise ValueError(
            f"Expected image_shape={image_shape} with height and width of at least "
            f"{_smallest_side(steps)}: pooling leaves nothing of less."
        )
    return height, width, channels


def _smallest_side(steps: Sequence[Step]) -> int:
    side = 1
    for step in reversed(steps):
        side = (side * step.window - 1) * step.stride + 1
    return side
