"""Residual networks of basic blocks: He et al. (2016), "Deep Residual Learning".

ResNet-20 is the paper's network for CIFAR (section 4.2): three stages of three blocks,
`width` (16) channels in the first; Geiping et al. (2020) use width 64 ("ResNet20-4").
ResNet-18 has four stages of two blocks, width 64 (section 4.1), and one of two stems:
"imagenet", a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2, or "cifar", a
3x3 convolution of stride 1.

Deviations: shortcuts that change shape are 1x1 convolutions (the paper's option B) in
both; weights start as N(0, 1 / fan_in), half of the paper's variance; convolutions have
biases only where there is no norm after them.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx

from models import layers
from models.spec import Architecture, Defaults, Spec


class Block(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, with an activation after the sum.

    Parameters: `layers/0`, `layers/1`, and `layers/2` for a shortcut that changes
    shape; `norms/i` after `layers/i`.
    """

    def __init__(
        self, spec: Spec, inputs: int, outputs: int, rngs: nnx.Rngs, *, stride: int
    ):
        make = functools.partial(_convolution, spec, rngs=rngs)
        convolutions = [make(inputs, outputs, stride=stride), make(outputs, outputs)]
        if stride != 1 or inputs != outputs:
            convolutions.append(make(inputs, outputs, kernel=1, stride=stride))
        self.layers = nnx.List(convolutions)
        self.norms = nnx.List([layers.norm(spec, outputs, rngs) for _ in convolutions])
        self.activation = layers.ACTIVATIONS[spec.activation]

    def __call__(self, features: jax.Array) -> jax.Array:
        residual = self.activation(self._step(0, features))
        shortcut = self._step(2, features) if len(self.layers) == 3 else features
        return self.activation(self._step(1, residual) + shortcut)

    def _step(self, i: int, features: jax.Array) -> jax.Array:
        return self.norms[i](self.layers[i](features))


class ResNet(nnx.Module):
    """A stem, stages of blocks, a mean over pixels and a dense head.

    The first block of every stage but the first halves height and width; each stage has
    twice the channels of the one before. Parameters: `stem`, `stem_norm`, `blocks/i`
    (counted through the stages), `head`, and `hidden` before it where it was asked for.
    """

    last = "head"

    def __init__(self, spec: Spec, rngs: nnx.Rngs, *, stages: Sequence[int]):
        self.imagenet = spec.stem == "imagenet"
        kernel, stride = (7, 2) if self.imagenet else (3, 1)
        self.stem = _convolution(
            spec, spec.image_shape[2], spec.width, rngs, kernel=kernel, stride=stride
        )
        self.stem_norm = layers.norm(spec, spec.width, rngs)
        self.activation = layers.ACTIVATIONS[spec.activation]
        blocks, channels = [], spec.width
        for stage, length in enumerate(stages):
            for i in range(length):
                inputs, channels = channels, spec.width * 2**stage
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(spec, inputs, channels, rngs, stride=stride))
        self.blocks = nnx.List(blocks)
        if spec.hidden:
            self.hidden = layers.dense(spec, channels, spec.hidden, rngs)
        self.head = layers.dense(spec, spec.hidden or channels, spec.num_classes, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """`[B, H, W, C]` normalised images to `[B, num_classes]` logits."""
        return self.head(self.features(images))

    def features(self, images: jax.Array) -> jax.Array:
        """`[B, H, W, C]` normalised images to the head's input, `[B, F]`."""
        features = self.activation(self.stem_norm(self.stem(images)))
        if self.imagenet:
            features = layers.max_pool_3x3(features)
        for block in self.blocks:
            features = block(features)
        features = features.mean((1, 2))
        if hasattr(self, "hidden"):
            features = self.activation(self.hidden(features))
        return features


def _convolution(spec: Spec, inputs: int, outputs: int, rngs: nnx.Rngs, **shape):
    bias = spec.norm == "none"
    return layers.convolution(spec, inputs, outputs, rngs, bias=bias, **shape)


RESNET20 = Architecture(
    functools.partial(ResNet, stages=(3, 3, 3)),
    Defaults("relu", "batch", "default", width=16, hidden="none"),
)

RESNET18 = Architecture(
    functools.partial(ResNet, stages=(2, 2, 2, 2)),
    Defaults("relu", "batch", "default", width=64, stem="auto", hidden="none"),
)
