"""Finds dense layers with a relu in a network, and cuts the network there."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax.base import Block, Params
from invertjax.exact.places import Place, per_pixel, places
from invertjax.rewrites.straight import Straight, traced


class DenseRelu(NamedTuple):
    """A dense layer with bias and relu, h = relu(x W + c), and what surrounds it.

    path: of its weight in the params. place: where the layer is.
    inputs: D. units: N.
    enter: `(params, images [B, H, W, C]) -> x [B, D]`, all that comes before.
    behind: `(params, h [B, N]) -> logits [B, K]`, all that follows.
    behind_next: `(params, u [B, M]) -> logits [B, K]`, all that follows the next
      layer's product u = h V; None where what comes next is no such layer.
    pixelwise: whether x holds every pixel of an image by itself, moved and scaled.
    alone: whether x of an image depends on no other image of the batch.
    """

    path: str
    place: Place
    inputs: int
    units: int
    enter: Callable[[Params, jax.Array], jax.Array]
    behind: Callable[[Params, jax.Array], jax.Array]
    behind_next: Callable[[Params, jax.Array], jax.Array] | None
    pixelwise: bool
    alone: bool

    def of(self, tree: Any) -> tuple[jax.Array, jax.Array]:
        """Returns W `[D, N]` and c `[N]` of the params, or of an update like them."""
        weight = _leaf(tree, self.place.weight, self.place.transposed)
        return weight, _leaf(tree, self.place.bias, False)

    def next_of(self, tree: Any) -> jax.Array | None:
        """Returns V `[N, M]` of the params, or of an update; None without one."""
        if self.place.next_weight is None:
            return None
        return _leaf(tree, self.place.next_weight, self.place.next_transposed)

    def pixels(self, params: Params, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the images `[B, H, W, C]` that enter as x `[B, D]`.

        `enter` moves pixels and scales them, x = J i + c, so that J^T (x - c) is the
        image times the square of the scale, and J^T J 1 that square.
        """

        def one(row: jax.Array) -> jax.Array:
            def enter(image: jax.Array) -> jax.Array:
                return self.enter(params, image[None])[0]

            zero = jnp.zeros(shape[1:], row.dtype)
            offset, back = jax.vjp(enter, zero)
            scale = enter(zero + 1) - offset
            return back(row - offset)[0] / back(scale)[0]

        return jax.vmap(one)(x)


def lowest(
    blocks: Sequence[Block], params: Params, shape: tuple[int, ...]
) -> DenseRelu:
    """Returns the dense layer with bias and relu that is nearest to the images.

    Args:
      blocks: `(params, features) -> features` each, from images to logits.
      params: of the network, or their shapes.
      shape: `(B, H, W, C)`.

    Raises:
      ValueError: with the reason, where no layer can be peeled.
    """
    if not blocks:
        raise ValueError(
            "expected a network that is given block by block, from images to logits, "
            "without a defense of its own"
        )
    found, reasons = layers(blocks, params, shape)
    if not found:
        why = "; ".join(reasons) or "this network has no hidden dense layer"
        raise ValueError(f"expected a dense layer with a bias and a relu: {why}")
    return found[0]


def layers(
    blocks: Sequence[Block], params: Params, shape: tuple[int, ...]
) -> tuple[list[DenseRelu], list[str]]:
    """Returns the layers that can be peeled, from the images up, and why others cannot.

    See `lowest`.
    """
    params = jax.tree.map(_struct, params)
    straight = _straight(blocks, params, shape)
    found, reasons = [], []
    for n, (path, place) in enumerate(places(straight, params)):
        if isinstance(place, str):
            reasons.append(f"{path} {place}")
            continue
        layer = _layer(blocks, params, shape, straight, path, place, n)
        if _mixed(layer.behind, params, (layer.units,)):
            reasons.append(f"{path} is followed by a layer that mixes the batch")
        else:
            found.append(layer)
    return found, reasons


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


def _leaf(tree: Any, number: int, transposed: bool) -> jax.Array:
    leaf = jnp.asarray(jax.tree.leaves(tree)[number])
    return leaf.T if transposed else leaf


def _straight(
    blocks: Sequence[Block], params: Params, shape: tuple[int, ...]
) -> Straight:
    def apply(params: Params, features: jax.Array) -> jax.Array:
        for block in blocks:
            features = block(params, features)
        return features

    images = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    return traced(apply, jax.tree.map(_struct, params), images)


def _layer(
    blocks: Sequence[Block],
    params: Params,
    shape: tuple[int, ...],
    straight: Straight,
    path: str,
    place: Place,
    number: int,
) -> DenseRelu:
    def cut(params: Params, batch: int) -> tuple[Straight, Place, dict[int, Any]]:
        again = _straight(blocks, params, (batch, *shape[1:]))
        at = places(again, params)[number][1]
        assert isinstance(at, Place)  # the size of a batch changes no layer
        known = zip(again.inputs, jax.tree.leaves(params), strict=False)
        return again, at, dict(known)

    def enter(params: Params, images: jax.Array) -> jax.Array:
        again, at, known = cut(params, len(images))
        return again.run([at.inputs], {**known, again.inputs[-1]: images})[0]

    def behind(params: Params, hidden: jax.Array) -> jax.Array:
        again, at, known = cut(params, len(hidden))
        return again.run(again.outputs, {**known, at.hidden: hidden})[0]

    def behind_next(params: Params, product: jax.Array) -> jax.Array:
        again, at, known = cut(params, len(product))
        assert at.product is not None
        return again.run(again.outputs, {**known, at.product: product})[0]

    inputs, units = (straight.avals[i].shape[1] for i in (place.inputs, place.hidden))
    pixelwise = inputs == math.prod(shape[1:]) and per_pixel(straight, place.inputs)
    after = None if place.product is None else behind_next
    alone = not _mixed(enter, params, shape[1:])
    return DenseRelu(path, place, inputs, units, enter, behind, after, pixelwise, alone)


def _mixed(
    fun: Callable[[Params, jax.Array], jax.Array], params: Params, row: tuple[int, ...]
) -> bool:
    """Says whether what comes of a row depends on another row, by a NaN in it."""

    def second() -> jax.Array:
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)
        return fun(ones, jnp.ones((2, *row)).at[0].set(jnp.nan))[1]

    with jax.ensure_compile_time_eval(), jax.debug_nans(False):
        return bool(jnp.any(jnp.isnan(second())))
