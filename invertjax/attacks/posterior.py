"""Balunovic et al. (2022), "Bayesian Framework for Gradient Leakage", section 4: the
attacker who knows how the noise was drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from invertjax import candidates, distances, matching
from invertjax.attacks.inverting_gradients import step_decay
from invertjax.base import Attack, Candidate, Prior, Share, Update

# name: (distance, power p): -log p(g | x) = distance(G(x), g) / (p noise^p) + constant
LIKELIHOODS = {"gaussian": (distances.squared, 2), "laplace": (distances.l1, 1)}


def posterior(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    noise: jax.typing.ArrayLike,
    prior: Prior,
    distribution: str = "gaussian",
    steps: int = 2_000,
    learning_rate: jax.typing.ArrayLike = 0.02,
) -> Attack:
    """Finds the most probable batch, given the update and the law of its noise.

        max over x in [0, 1]: log p(g | x) + log p(x)

    with g = G(x) + noise, every coordinate independent: |g - G(x)|^2 / (2 s^2) for
    Gaussian noise and |g - G(x)|_1 / s for Laplace noise, up to constants. What is
    minimised is 2 s^2 (or s) times that, so that nothing is divided by a noise of zero:
    then only the update counts. The optimiser is that of `inverting_gradients`, signed
    Adam, which no positive factor changes.

    This is the mode, as in the paper's experiments. Its Bayes-optimal adversary
    maximises the average over a neighbourhood, and the least mean squared error is the
    posterior mean's; all three agree where both laws are Gaussian. Under Gaussian noise
    this is gradient matching whose weight of the prior follows from the noise, not from
    tuning.

    Args:
      share: `batch -> update`, G: the defended client less its noise. For DP-SGD
        `defenses.dp_sgd(client, C, 0.0)`, whose noise is z C / B.
      observed: the shared update.
      candidate: of the batch; kept in its own bounds, or else in [0, 1].
      noise: `[]`, >= 0, in units of the update: the standard deviation s of Gaussian
        noise, the scale s of Laplace noise.
      prior: `(batch, t) -> []`, -log p(x), e.g. `smoothness(fit_smoothness(images))`.
      distribution: of the noise, "gaussian" or "laplace".
      steps: iterations.
      learning_rate: of Adam, in units of pixels; falls as in `inverting_gradients`.

    Raises:
      ValueError: on an unknown distribution.
    """
    if distribution not in LIKELIHOODS:
        raise ValueError(
            f"Expected distribution={distribution!r} to be one of "
            f"{', '.join(LIKELIHOODS)}."
        )
    distance, power = LIKELIHOODS[distribution]
    weight = power * jnp.power(noise, power)
    adam = optax.adam(step_decay(learning_rate, steps))
    return matching.attack(
        share,
        observed,
        candidates.boxed(candidate),
        optimizer=optax.chain(optax.scale_by_sign(), adam),
        steps=steps,
        distance=distance,
        prior=lambda batch, t: weight * prior(batch, t),
    )


def smoothness(scale: jax.typing.ArrayLike) -> Prior:
    """Returns the prior TV(x) / scale, -log p(x) of images with similar neighbours.

    TV is the sum of |dx| + |dy| over all pixels, channels and images: a Laplace law of
    every difference, on a grid where differences are not free (see `fit_smoothness`).

    Args:
      scale: `[]`, > 0, in units of pixels.
    """
    return lambda batch, t: _total_variation(batch["image"], jnp) / scale


def fit_smoothness(images: jax.typing.ArrayLike) -> float:
    """Fits the `scale` of `smoothness` to public images by maximum likelihood.

    p(x) is c / scale^m exp(-TV(x) / scale), where m is one less than the pixels of a
    channel: a common offset is free. So the best scale is TV(x) / m. (The mean
    |difference| would be right if all differences were free; there are about twice as
    many as pixels, so it is about half of this.) Ignores that pixels end at 0 and 1.

    Args:
      images: `[N, H, W, C]`, pixels in [0, 1], of more than one pixel; public ones,
        never the target.

    Raises:
      ValueError: on images of another shape, or all constant.
    """
    images = np.asarray(images, np.float64)
    if images.ndim != 4 or images.shape[1] * images.shape[2] < 2:
        raise ValueError(
            f"Expected images of shape {images.shape} to be (N, H, W, C), of more than "
            "one pixel."
        )
    count, height, width, channels = images.shape
    scale = _total_variation(images, np) / (count * channels * (height * width - 1))
    if not scale > 0:
        raise ValueError("Expected images with differences between pixels.")
    return float(scale)


def _total_variation(images: Any, xp: Any) -> Any:
    down, right = (xp.abs(xp.diff(images, axis=axis)) for axis in (-3, -2))
    return down.sum() + right.sum()
