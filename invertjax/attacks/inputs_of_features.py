"""Finds the images of features that are known: no gradient of a gradient is needed.

Where a layer of a network gives its inputs away exactly (`invertjax.exact`), an image
is what has these features: a least-squares problem of each image by itself, however
large the batch was. Mahendran and Vedaldi (2015), "Understanding Deep Image
Representations by Inverting Them", minimise the same by gradient descent.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invertjax import candidates
from invertjax.attacks.gauss_newton import gauss_newton
from invertjax.base import Attack, Batch, Update
from invertjax.each import each
from invertjax.rewrites import convolutions, smoothing


def inputs_of_features(
    enter: Callable[[jax.Array], jax.Array],
    features: jax.Array,
    shape: tuple[int, ...],
    *,
    apart: bool = True,
    steps: int = 40,
) -> Attack:
    """Looks for the images of features, by damped Gauss-Newton steps from grey.

        min over x: |enter(x) - features|^2 / |features|^2 / 2 + a TV(x)

    With relus through smooth networks of growing sharpness; see `gauss_newton`. Relus
    that are off say only that an input is negative, so that fewer equations than pixels
    may be left, and the prior fills in the rest.

    Args:
      enter: `images [B, H, W, C] -> [B, D]`.
      features: `[B, D]`.
      shape: `(B, H, W, C)`.
      apart: whether features of an image depend on no other image: then each has steps
        of its own.
      steps: linearisations.

    Returns:
      An attack whose batch is {"image", "label"}; the labels mean nothing.
    """
    if convolutions.preferred():
        enter = convolutions.as_matrix_products(enter)
    images = jax.ShapeDtypeStruct((1, *shape[1:]), features.dtype)
    relus = smoothing.has_relu(enter, images)

    def share(batch: Batch) -> Update:
        return enter(batch["image"])

    def softened(batch: Batch, sharpness: jax.Array) -> Update:
        return smoothing.softened(enter, sharpness)(batch["image"])

    def attack(wanted: jax.Array) -> Attack:
        rows = (len(wanted), *shape[1:])
        none = jnp.zeros(len(wanted), jnp.int32)
        grey = candidates.pixels(rows, none, init=candidates.grey)
        return gauss_newton(
            share,
            wanted,
            candidates.box(grey),
            steps=steps,
            softened=softened if relus else None,
            total_variation=1e-2,
            polish=0,
            dense=0,
        )

    if not apart:
        return attack(features)
    return each(attack, features[:, None])
