"""Priors: what a batch should look like, as terms added to the objective.

A prior is a function `(batch, t) -> []` with t in [0, 1] the share of the run. Every
weight is a number, an array, or a schedule `t -> weight`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax.base import Batch, Params, Prior

Weight = float | jax.Array | Callable[[jax.Array], jax.Array]


def none(batch: Batch, t: jax.Array) -> jax.Array:
    """Returns zero: the flat prior."""
    del batch, t
    return jnp.zeros(())


def combined(*priors: Prior) -> Prior:
    """Adds several priors."""
    return lambda batch, t: sum((p(batch, t) for p in priors), jnp.zeros(()))


def total_variation(weight: Weight, *, isotropic: bool = False) -> Prior:
    """Weighs the total variation of `batch["image"]`: images are smooth but for edges.

    Anisotropic: mean |dx| + mean |dy| over neighbours (Geiping et al. 2020, section 4).
    Isotropic: mean sqrt(dx^2 + dy^2) over pixels (Rudin et al. 1992), with edges
    continued.
    Both are means over pixels, channels and images: independent of the image size.
    """
    value = _isotropic if isotropic else _anisotropic
    return lambda batch, t: _at(weight, t) * value(batch["image"])


class LeastSquares(NamedTuple):
    """A prior that second-order attacks can use as well.

    value: the prior, `(batch, t) -> []`.
    residual: `(batch, t) -> pytree`; half its sum of squares has the slope of `value`,
      and a curvature that is never too small (iteratively reweighted least squares).
    """

    value: Prior
    residual: Callable[[Any, jax.Array], Any]

    def __call__(self, batch: Batch, t: jax.Array) -> jax.Array:
        return self.value(batch, t)


def smoothed_total_variation(
    weight: Weight, *, smoothing: float = 1e-2
) -> LeastSquares:
    """Weighs the anisotropic total variation, with sqrt(d^2 + smoothing^2) for |d|.

    Vogel and Oman (1996), "Iterative Methods for Total Variation Denoising": the
    residual is d / (d^2 + smoothing^2)^(1/4), its denominator a constant.
    """

    def differences(batch: Batch) -> list[jax.Array]:
        down, right = (jnp.diff(batch["image"], axis=axis) for axis in (-3, -2))
        return [d for d in (down, right) if d.size]

    def value(batch: Batch, t: jax.Array) -> jax.Array:
        lengths = [jnp.sqrt(d**2 + smoothing**2) for d in differences(batch)]
        return _at(weight, t) * sum(map(jnp.mean, lengths), jnp.zeros(()))

    def residual(batch: Batch, t: jax.Array) -> list[jax.Array]:
        return [
            jnp.sqrt(_at(weight, t) / d.size)
            * d
            * jax.lax.stop_gradient(d**2 + smoothing**2) ** -0.25
            for d in differences(batch)
        ]

    return LeastSquares(value, residual)


def l2(weight: Weight, *, center: float = 0.0) -> Prior:
    """Weighs the mean squared distance of the pixels from `center`."""
    return lambda batch, t: _at(weight, t) * jnp.mean((batch["image"] - center) ** 2)


def batch_norm(
    weight: Weight,
    statistics_fn: Callable[[Params, Any], Any],
    params: Params,
    observed: Any,
) -> Prior:
    """Weighs the distance of batch-norm statistics from those that the client shared.

    sum over layers of |mean - mean*|^2 + |var - var*|^2: Yin et al. (2021),
    "See through Gradients", equation 8.

    Args:
      weight: of the sum.
      statistics_fn: `(params, batch) -> pytree`, e.g. a (mean, var) for every layer.
      params: at which the client computed its update.
      observed: the pytree of the shared (or inferred) statistics.
    """

    def prior(batch: Batch, t: jax.Array) -> jax.Array:
        gaps = jax.tree.map(
            lambda s, o: jnp.sum((s - o) ** 2), statistics_fn(params, batch), observed
        )
        return _at(weight, t) * sum(jax.tree.leaves(gaps), jnp.zeros(()))

    return prior


def group_consistency(weight: Weight, *, axis_name: str = "restarts") -> Prior:
    """Weighs the mean squared distance from the mean of the target's restarts.

    Yin et al. (2021), equation 11, with the plain mean (their "lazy" form) in place of
    the mean after registration. The mean is a constant: each restart is drawn towards
    it, and none moves it for the others' sake.

    Args:
      weight: of the mean square.
      axis_name: of the `vmap` over restarts; the driver names it "restarts".
    """

    def prior(batch: Batch, t: jax.Array) -> jax.Array:
        image = batch["image"]
        consensus = jax.lax.stop_gradient(jax.lax.pmean(image, axis_name))
        return _at(weight, t) * jnp.mean((image - consensus) ** 2)

    return prior


def _at(weight: Weight, t: jax.Array) -> float | jax.Array:
    return weight(t) if callable(weight) else weight


def _anisotropic(image: jax.Array) -> jax.Array:
    down = jnp.abs(jnp.diff(image, axis=-3))
    right = jnp.abs(jnp.diff(image, axis=-2))
    # An image one pixel high or wide has no neighbours there, and no mean over them.
    return sum(jnp.mean(d) for d in (down, right) if d.size) + jnp.zeros(())


def _isotropic(image: jax.Array) -> jax.Array:
    down = jnp.diff(image, axis=-3, append=image[..., -1:, :, :])
    right = jnp.diff(image, axis=-2, append=image[..., -1:, :])
    squares = down**2 + right**2
    # sqrt has an infinite derivative at 0, and 0 * inf is NaN: hide it from autodiff.
    return jnp.mean(
        jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    )
