"""Images out of mixtures of images: what follows an attack on MixUp or InstaHide."""

from typing import Any

import jax
import jax.numpy as jnp

from invertjax.base import Batch, Candidate, Key, Point


def demix(mixed: jax.Array, mixing: jax.Array) -> jax.Array:
    """Finds the images x whose mixtures `mixing @ x` are nearest to the given ones.

    Least squares; of several solutions the one nearest to mid-grey. A singular M (two
    images at equal weights) leaves their mean in both; noise grows by up to the
    inverse of its least singular value.

    Args:
      mixed: `[N, ...]` mixtures; N = B, or those of several rounds of the same images.
      mixing: M `[N, B]`.

    Returns:
      `[B, ...]`, not clipped.
    """
    grey = 0.5 * mixing.sum(1)
    rows = mixed.reshape(len(mixed), -1) - grey[:, None]
    images = 0.5 + _times(jnp.linalg.pinv(mixing), rows)
    return images.reshape(mixing.shape[1], *mixed.shape[1:])


def demix_absolute(
    key: Key,
    encoded: jax.Array,
    mixing: jax.Array,
    *,
    restarts: int = 128,
    steps: int = 32,
) -> jax.Array:
    """Finds the images behind InstaHide's encodings, whose pixels lost their signs.

    With u = x - 1/2 and a = |encoded - 1/2|, solves |M u| = a pixel by pixel: the signs
    of M u, then u in [-1/2, 1/2] by least squares, and again (alternating projections,
    Gerchberg and Saxton 1972); of many starts the one that fits best. Carlini et al.
    (2021), "Is Private Learning Possible with Instance Encoding?", descend on the same
    residual.

    u and -u fit alike, for every pixel by itself. The sign is taken that agrees with
    the neighbours in all images (by the leading eigenvector of their inner products),
    so that it only remains unknown whether the batch is its own negative. In general
    2 B - 1 encodings determine a pixel up to its sign (Balan, Casazza and Edidin 2006,
    "On signal reconstruction without phase"), and fewer do not: those of one batch,
    N = B, are too few.

    Args:
      key: consumed.
      encoded: `[N, H, W, C]`.
      mixing: M `[N, B]`, of several rounds of the same images.
      restarts: starts a pixel.
      steps: iterations.

    Returns:
      `[B, H, W, C]` in [0, 1]; its negative, 1 - x, is as good.
    """
    count, shape = mixing.shape[1], encoded.shape[1:]
    magnitude = jnp.abs(encoded - 0.5).reshape(len(encoded), -1)
    inverse = jnp.linalg.pinv(mixing)

    def step(u: jax.Array, _: None) -> tuple[jax.Array, None]:
        signed = jnp.where(_times(mixing, u) < 0, -magnitude, magnitude)
        return jnp.clip(_times(inverse, signed), -0.5, 0.5), None

    def run(key: Key) -> tuple[jax.Array, jax.Array]:
        start = 0.25 * jax.random.normal(key, (count, magnitude.shape[1]))
        u, _ = jax.lax.scan(step, start, length=steps)
        return u, jnp.sum((jnp.abs(_times(mixing, u)) - magnitude) ** 2, 0)

    found, misfit = jax.vmap(run)(jax.random.split(key, restarts))
    best = jnp.argmin(misfit, 0)[None, None]
    u = jnp.take_along_axis(found, best, axis=0)[0].reshape(count, *shape)
    return 0.5 + _coherent(u)[None] * u


def mixing_from_labels(soft: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mixing matrix behind mixed labels y' = M y.

    Exact where the labels of the batch are distinct. Images that share a label share
    its weight equally.

    Args:
      soft: `[N, K]` labels of the mixtures.
      labels: `[B]` integers, those of the images.

    Returns:
      `[N, B]`.
    """
    counts = jnp.bincount(labels, length=soft.shape[1])
    return soft[:, labels] / counts[labels][None]


def unknown_mixing(candidate: Candidate, size: int) -> Candidate:
    """Lets a candidate also search for who was mixed with whom.

    z has `[B, B]` logits "mixing" beside its own; the batch has their softmax over
    rows, a relaxation of the matrix in `defenses.mixup`.

    Args:
      candidate: its z is a dict.
      size: B.
    """

    def init(key: Key) -> Point:
        own_key, mixing_key = jax.random.split(key)
        logits = jax.random.normal(mixing_key, (size, size))
        return {**candidate.init(own_key), "mixing": logits}

    def decode(z: Point) -> Batch:
        return {**candidate.decode(z), "mixing": jax.nn.softmax(z["mixing"])}

    return candidate._replace(init=init, decode=decode)


def _times(matrix: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, rows, precision=jax.lax.Precision.HIGHEST)


def _coherent(u: jax.Array, steps: int = 500) -> jax.Array:
    """Finds the signs `[H, W, C]` with which neighbours in u `[B, H, W, C]` agree.

    They are those of the leading eigenvector of the couplings, each pixel's divided by
    their sum: where all neighbours can agree, it is the answer itself.
    """
    couplings = [jnp.sum(a * b, 0) for a, b in (_pairs(u, axis) for axis in (1, 2, 3))]

    def around(weights: list[jax.Array], v: jax.Array) -> jax.Array:
        """Sums weight times v over the neighbours of every pixel."""

        def agreement(v: jax.Array) -> Any:
            pairs = [_pairs(v, axis) for axis in range(3)]
            terms = zip(weights, pairs, strict=True)
            return sum(jnp.sum(weight * a * b) for weight, (a, b) in terms)

        return jax.grad(agreement)(v)

    ones = jnp.ones(u.shape[1:])
    degree = jnp.maximum(around([jnp.abs(c) for c in couplings], ones), 1e-12)
    v = jax.lax.fori_loop(
        0, steps, lambda _, v: (v + around(couplings, v) / degree) / 2, _tilted(u)
    )
    return jnp.where(v < 0, -1.0, 1.0)


def _tilted(u: jax.Array) -> jax.Array:
    """Makes a start not orthogonal to the answer: all agree with the largest."""
    direction = u.reshape(len(u), -1)
    largest = jnp.argmax(jnp.sum(direction**2, 0))
    towards = jnp.sum(u * direction[:, largest].reshape(-1, 1, 1, 1), 0)
    return jnp.where(towards < 0, -1.0, 1.0)


def _pairs(array: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Returns every entry but the last along the axis, and the entry after it."""
    size = array.shape[axis]
    return (
        jax.lax.slice_in_dim(array, 0, size - 1, axis=axis),
        jax.lax.slice_in_dim(array, 1, size, axis=axis),
    )
