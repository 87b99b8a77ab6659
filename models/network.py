"""A flax module as three pure functions over plain dicts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models import layers

Params = dict[Any, Any]
Buffers = dict[Any, Any]


class Network(NamedTuple):
    """A network as pure functions, for `jit`, `vmap`, `grad` and `scan`.

    Params and buffers are plain nested dicts. Items of a list have integer keys, so
    that joined paths read `layers/0/kernel`.

    Attributes:
      init: `key -> (params, buffers)`. Buffers hold the running mean and variance of
        every batch norm; `{}` where there is none.
      apply: `(params, buffers, images, train) -> (logits, buffers)`. `images` is
        `[B, H, W, C]`, float in [0, 1]; `train` is a Python bool: batch norms take
        the batch's statistics and move the buffers if true, and else take the
        buffers. Logits are `[B, num_classes]`. Raises ValueError for images of another
        shape or of integers.
      statistics: `(params, images) -> buffers`: the mean and (biased) variance of what
        enters every batch norm in training, in the structure of the buffers.
        `{}` where there is no batch norm. Differentiable in both arguments, for the
        prior of Yin et al. (2021), "See through Gradients". None where not known.
      features: `(params, buffers, images, train) -> (features, buffers)`, as `apply`,
        up to the input of the last dense layer, `[B, F]`: the representation. None
        where not known.
      head: `(params, features) -> logits`: that layer. `apply` is `head` of `features`.
        None where not known.
      last: the path of that layer in the params, such as "layers/3"; "" where not
        known.
      blocks: `(params, features) -> features` each, whose composition, from images to
        logits, is `apply` in training; `()` where the network has shortcuts.
      mean, std: of the normalisation, one value a channel.
    """

    init: Callable[[jax.Array], tuple[Params, Buffers]]
    apply: Callable[[Params, Buffers, jax.Array, bool], tuple[jax.Array, Buffers]]
    statistics: Callable[[Params, jax.Array], Buffers] | None
    features: (
        Callable[[Params, Buffers, jax.Array, bool], tuple[jax.Array, Buffers]] | None
    )
    head: Callable[[Params, jax.Array], jax.Array] | None
    last: str
    blocks: tuple[Callable[[Params, jax.Array], jax.Array], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def network(
    make: Callable[[nnx.Rngs], Any],
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """Wraps a module, preceded by the normalisation (image - mean) / std.

    Args:
      make: `rngs -> nnx.Module` with variables of the kinds `nnx.Param` and
        `nnx.BatchStat` only; see `Architecture`.
      image_shape: (height, width, channels) that the module accepts.
      mean: one value a channel.
      std: one positive value a channel.
    """

    def init(key):
        _, params, buffers = _split(make(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)

    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, _, abstract = _split(module)
    abstract = nnx.to_pure_dict(abstract)

    def merged(params, buffers):
        # A batch norm would write into a NumPy array itself, or fail to.
        buffers = jax.tree.map(jnp.asarray, buffers)
        # Without a copy, batch norms would write into a trace that is not theirs.
        return nnx.merge(graph, params, buffers, copy=True)

    def zeros():
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)

    def run(method, params, buffers, images, **attributes):
        _check_images(images, image_shape)
        model = merged(params, buffers)
        model.set_attributes(**attributes, raise_if_not_found=False)
        output = getattr(model, method)(layers.normalise(images, mean, std))
        return output, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def apply(params, buffers, images, train):
        return run("__call__", params, buffers, images, use_running_average=not train)

    def statistics(params, images):
        # With no momentum, what is left behind is the batch's.
        batch = {"use_running_average": False, "momentum": 0.0}
        return run("__call__", params, zeros(), images, **batch)[1]

    def features(params, buffers, images, train):
        return run("features", params, buffers, images, use_running_average=not train)

    def head(params, features):
        return merged(params, zeros()).head(features)

    def block(i, params, features):
        if i == 0:
            features = layers.normalise(features, mean, std)
        return merged(params, zeros()).block(i, features)

    depth = getattr(module, "depth", 0)  # those with shortcuts have none
    return Network(
        init,
        apply,
        statistics,
        features,
        head,
        module.last,
        tuple(functools.partial(block, i) for i in range(depth)),
        tuple(mean),
        tuple(std),
    )


def _split(model):
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def _check_images(images: jax.Array, image_shape: tuple[int, int, int]) -> None:
    if images.shape[1:] != tuple(image_shape):
        raise ValueError(
            f"Expected images of shape {images.shape} to be (batch, *{image_shape})."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"Expected images of dtype {images.dtype} to be floats in [0, 1]: "
            "divide pixels by 255."
        )
