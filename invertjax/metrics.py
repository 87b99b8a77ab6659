"""How close a reconstruction is, after an optimal assignment of its images.

`mse`, `psnr` and `ssim` take one image, are differentiable and batch by `jax.vmap`.
They score what they are given: clipping to the range of an image is the caller's.
All of it is computed in float32 or wider, whatever the images are.
`score` does all of it: clips, assigns, scores.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from invertjax import trees
from invertjax.base import Batch

EXACT = 160.0  # dB, the cap of scores: float32 resolves no more
_WINDOW = 7  # side of the SSIM window


def mse(reconstruction: jax.Array, original: jax.Array) -> jax.Array:
    """Returns the mean squared error of one image, `[]`."""
    return jnp.mean(jnp.square(trees.wide(reconstruction) - trees.wide(original)))


def psnr(
    reconstruction: jax.Array,
    original: jax.Array,
    *,
    data_range: float = 1.0,
    cap: float | None = None,
) -> jax.Array:
    """Returns the PSNR of one image in dB, 10 log10(data_range^2 / mse).

    Args:
      reconstruction, original: one image, of any shape.
      data_range: largest minus smallest possible value.
      cap: the most that is returned; None: `inf` for equal images. Set it before
        taking means. Float32 resolves about 160 dB.
    """
    value = 10.0 * jnp.log10(data_range**2 / mse(reconstruction, original))
    return value if cap is None else jnp.minimum(value, cap)


def ssim(
    reconstruction: jax.Array, original: jax.Array, *, data_range: float = 1.0
) -> jax.Array:
    """Returns the structural similarity of one image, in [-1, 1].

    It is the mean over channels and all 7x7 windows inside the image of
    (2 ma mb + c1) (2 cov + c2) / ((ma^2 + mb^2 + c1) (va + vb + c2)), with means,
    sample variances and covariance (divisor 48) of the window, c1 = (.01 range)^2 and
    c2 = (.03 range)^2. Wang et al. (2004), "Image quality assessment: from error
    visibility to structural similarity", section III.B, with uniform instead of
    Gaussian windows, as in scikit-image's defaults. Moments are taken about the
    means of their windows, which keeps float32 exact for flat images.

    Args:
      reconstruction, original: `[H, W, C]`, H and W at least 7.
      data_range: largest minus smallest possible value.

    Raises:
      ValueError: if the shapes differ or an image is smaller than the window.
    """
    a, b = trees.wide(reconstruction), trees.wide(original)
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(
            f"Expected images [H, W, C] of one shape, got {a.shape} and {b.shape}."
        )
    if min(a.shape[:2]) < _WINDOW:
        raise ValueError(
            f"Expected H and W of shape={a.shape} >= {_WINDOW}, the window's side."
        )
    mean_a, mean_b, var_a, var_b, cov = _window_moments(a, b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(luminance * (2 * cov + c2) / (var_a + var_b + c2))


def pairwise_mse(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the mean squared error of every pair of images.

    It sums over differences, row by row. The expansion |a|^2 - 2ab + |b|^2 is one
    matrix product, but in float32 it loses everything beyond about 70 dB.

    Args:
      a: `[N, ...]`.
      b: `[M, ...]`, images of the same shape.

    Returns:
      `[N, M]`.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"Expected images of one shape, got {a.shape} and {b.shape}.")
    return jax.lax.map(lambda row: jax.vmap(lambda other: mse(row, other))(b), a)


def assignment(
    reconstructions: jax.Array,
    originals: jax.Array,
    *,
    pairwise: Callable[..., jax.Array] = pairwise_mse,
) -> np.ndarray:
    """Returns the order of the reconstructions in which their total MSE is least.

    A batch of gradients has no order, so that reconstructions come in any. Each
    original gets a reconstruction of its own (Kuhn 1955, the Hungarian method): a
    reconstruction is never counted twice. Runs on the host.

    Args:
      reconstructions: `[N, ...]`, N >= B. With N > B those that fit best are kept,
        which flatters: compare with as many guesses that never saw the update.
      originals: `[B, ...]`.
      pairwise: `pairwise_mse`, or a compiled one for many batches.

    Returns:
      `[B]` integers: `reconstructions[order]` is in the order of the originals. A
      reconstruction with non-finite pixels goes where nothing else fits.

    Raises:
      ValueError: if there are too few reconstructions.
    """
    if len(reconstructions) < len(originals):
        raise ValueError(
            f"Expected at least {len(originals)} reconstructions, one for each "
            f"original, got {len(reconstructions)}."
        )
    if reconstructions.shape == originals.shape and len(originals) == 1:
        return np.zeros(1, int)  # there is nothing to choose, and comparing takes time
    cost = np.asarray(pairwise(originals, reconstructions), np.float64)
    worst = np.max(cost, where=np.isfinite(cost), initial=0.0)
    cost = np.where(np.isfinite(cost), cost, len(originals) * (worst + 1.0))
    return optimize.linear_sum_assignment(cost)[1]


def align(reconstruction: Batch, original: Batch) -> Batch:
    """Reorders every leaf of a batch by the `assignment` of its images."""
    order = assignment(reconstruction["image"], original["image"])
    return jax.tree.map(lambda leaf: leaf[order], reconstruction)


def has_ssim(shape: Sequence[int]) -> bool:
    """Returns whether images `[H, W, C]` are as large as the window of `ssim`."""
    return min(shape[:2]) >= _WINDOW


def by_image(
    images: jax.Array, originals: jax.Array, *, cap: float = EXACT
) -> dict[str, jax.Array]:
    """Returns scores `[B]` of images `[B, H, W, C]` in the order of the originals."""
    scores = {
        "mse": jax.vmap(mse)(images, originals),
        "psnr": jax.vmap(lambda a, b: psnr(a, b, cap=cap))(images, originals),
    }
    if has_ssim(originals.shape[1:]):
        scores["ssim"] = jax.vmap(ssim)(images, originals)
    return scores


def score(
    reconstruction: Batch,
    original: Batch,
    *,
    cap: float = EXACT,
    by_image: Callable[..., dict[str, jax.Array]] = by_image,
    pairwise: Callable[..., jax.Array] = pairwise_mse,
) -> dict[str, list[Any]]:
    """Scores a batch: clips to [0, 1], aligns, then scores image by image.

    Args:
      reconstruction: `{"image": [N, H, W, C], ...}`, N >= B, in any order.
      original: `{"image": [B, H, W, C], ...}` in [0, 1].
      cap: most that an image's PSNR can count, in dB.
      by_image, pairwise: the functions above, or compiled ones for many batches.

    Returns:
      Lists with one number per original: "mse", "psnr" in dB, "ssim" (missing for
      images below 7x7), and "order", the index of its reconstruction.
    """
    originals = jnp.asarray(original["image"])
    # NumPy compiles nothing for a clip and a choice of rows.
    images = np.clip(np.asarray(reconstruction["image"]), 0.0, 1.0)
    order = assignment(jnp.asarray(images), originals, pairwise=pairwise)
    found = by_image(jnp.asarray(images[order]), originals, cap=cap)
    scores = {**found, "order": order}
    return {name: np.asarray(values).tolist() for name, values in scores.items()}


def label_recall(
    true: jax.Array | np.ndarray, guess: jax.Array | np.ndarray, num_classes: int
) -> jax.Array:
    """Returns the share of labels recovered, sum_c min(true count, guessed count) / B.

    Args:
      true: `[B]` integers in [0, num_classes).
      guess: `[B]` integers, in any order.
      num_classes: K.

    Returns:
      `[]`, in [0, 1].
    """
    if true.shape != guess.shape:
        raise ValueError(
            f"Expected as many labels as guesses, got {true.shape} and {guess.shape}."
        )
    counts = [jnp.bincount(labels, length=num_classes) for labels in (true, guess)]
    return jnp.sum(jnp.minimum(*counts)) / true.shape[0]


def _window_moments(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Returns means, variances and covariance of all windows, `[H-6, W-6, C]` each.

    Down the columns first, then along the rows, where the moments of seven columns
    of seven combine without cancellation (Chan, Golub, LeVeque 1983).
    """
    a, b = _windows(a, 0), _windows(b, 0)
    mean_a, mean_b = a.mean(0), b.mean(0)
    da, db = a - mean_a[None], b - mean_b[None]
    sums = (jnp.sum(da * da, 0), jnp.sum(db * db, 0), jnp.sum(da * db, 0))

    mean_a, mean_b = _windows(mean_a, 1), _windows(mean_b, 1)
    within = [_windows(value, 1).sum(0) for value in sums]
    da, db = mean_a - mean_a.mean(0)[None], mean_b - mean_b.mean(0)[None]
    between = (jnp.sum(da * da, 0), jnp.sum(db * db, 0), jnp.sum(da * db, 0))
    degrees = _WINDOW**2 - 1
    var_a, var_b, cov = (
        (inner + _WINDOW * outer) / degrees
        for inner, outer in zip(within, between, strict=True)
    )
    return mean_a.mean(0), mean_b.mean(0), var_a, var_b, cov


def _windows(x: jax.Array, axis: int) -> jax.Array:
    """Returns seven shifted copies, `[7, ...]`, one for each place in a window."""
    length = x.shape[axis] - _WINDOW + 1
    shifts = (
        jax.lax.slice_in_dim(x, shift, shift + length, axis=axis)
        for shift in range(_WINDOW)
    )
    return jnp.stack(tuple(shifts))
