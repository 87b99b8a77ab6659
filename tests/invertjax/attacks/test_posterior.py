"""The Bayes attack: closed forms where both laws are known, then a real one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import photos, toy

import models
from invertjax import attacks, candidates, clients, defenses, losses, metrics
from invertjax.base import Stop

SHAPE = (1, 4, 5, 1)
PIXELS = 20
CENTRE, SPREAD = 0.5, 0.1  # of the prior: five deviations to the ends of the box
# The last learning rate is 0.02 * 1e-3. Signed steps with Adam's momentum of 0.9 carry
# a pixel up to 1 / (1 - 0.9) = 10 of them past its mode, and pixels that depend on one
# another (a Hessian of condition 4, below) up to four times as far; which way is up to
# rounding. Any factor that is wrong by a tenth moves the mode by 1e-2.
CIRCLE = 50 * 0.02e-3


def normal_prior(batch, t):
    return jnp.sum((batch["image"] - CENTRE) ** 2) / (2 * SPREAD**2)


def find(client, observed, *, shape=SHAPE, **options):
    label = jnp.zeros(shape[0], jnp.int32)
    candidate = candidates.pixels(shape, label, init=candidates.grey)
    attack = attacks.posterior(client, observed, candidate, **options)
    state = attack.init(jax.random.key(0))
    return attack.result(attack.advance(state, attack.steps))


def test_the_mode_of_a_linear_gaussian_model_is_ridge_regression():
    """And over draws of both, its error is the posterior's, tr(H^-1) / d."""
    rng = np.random.default_rng(0)
    draws, noise = 100, 0.08
    matrix = rng.normal(size=(60, PIXELS)) / 60**0.5
    truth = CENTRE + SPREAD * rng.normal(size=(draws, PIXELS))
    observed = truth @ matrix.T + noise * rng.normal(size=(draws, 60))

    hessian = matrix.T @ matrix / noise**2 + np.eye(PIXELS) / SPREAD**2
    score = observed @ matrix / noise**2 + CENTRE / SPREAD**2
    ridge = np.linalg.solve(hessian, score.T).T
    assert 0 < ridge.min() and ridge.max() < 1

    def client(batch):
        return {"g": toy.floats(matrix) @ batch["image"].ravel()}

    @jax.jit
    @jax.vmap
    def run(observed):
        return find(client, {"g": observed}, noise=noise, prior=normal_prior)

    found = np.asarray(run(toy.floats(observed)).batch["image"]).reshape(draws, -1)
    np.testing.assert_allclose(found, ridge, atol=CIRCLE)
    # 2,000 squares: +- 3%, and a little more, for they are correlated
    expected = np.trace(np.linalg.inv(hessian)) / PIXELS
    assert np.mean((found - truth) ** 2) == pytest.approx(expected, rel=0.15)


def test_noise_is_traced_and_may_be_none():
    """g = x + noise: (g / s^2 + c / r^2) / (1 / s^2 + 1 / r^2), and g where s is 0."""
    observed = jnp.linspace(0.2, 0.8, PIXELS).reshape(SHAPE)
    levels = np.array([0.0, 1e-30, 0.05, 0.2])

    @jax.jit
    @jax.vmap
    def run(noise):
        return find(
            lambda batch: batch["image"],
            observed,
            noise=noise,
            prior=normal_prior,
            steps=500,
        )

    result = run(toy.floats(levels))
    assert jnp.all(result.stopped == Stop.BUDGET)
    for noise, found in zip(levels, result.batch["image"], strict=True):
        weight = SPREAD**2 / (SPREAD**2 + noise**2)
        expected = CENTRE + weight * (observed - CENTRE)
        np.testing.assert_allclose(found, expected, atol=CIRCLE)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_laplace_noise_moves_a_pixel_only_so_far(noise):
    """|g - x| / b + (x - c)^2 / (2 r^2): x is g, if within r^2 / b of c."""
    observed = jnp.linspace(0.05, 0.95, PIXELS).reshape(SHAPE)
    found = jax.jit(
        lambda observed: find(
            lambda batch: batch["image"],
            observed,
            noise=noise,
            prior=normal_prior,
            distribution="laplace",
        )
    )(observed).batch["image"]
    reach = SPREAD**2 / noise
    expected = CENTRE + np.clip(observed - CENTRE, -reach, reach)
    assert 0 < np.mean(np.abs(observed - CENTRE) > reach) < 1
    np.testing.assert_allclose(found, expected, atol=CIRCLE)


def test_distributions():
    with pytest.raises(ValueError, match="'cauchy' to be one of gaussian, laplace"):
        find(
            lambda batch: batch["image"],
            jnp.zeros(SHAPE),
            noise=0.1,
            prior=normal_prior,
            distribution="cauchy",
        )


# The prior


def test_smoothness_is_the_total_variation_over_the_scale():
    image = jnp.array([[0.0, 0.25], [0.5, 1.0]])[None, :, :, None]
    # |dx| .25 and .5, |dy| .5 and .75
    prior = attacks.smoothness(0.5)
    assert prior({"image": image}, 0.0) == pytest.approx(4.0)
    two = jnp.tile(image, (2, 1, 1, 3))
    assert prior({"image": two}, 0.0) == pytest.approx(6 * 4.0)


def test_the_scale_of_a_line_of_pixels_is_its_mean_difference():
    rng = np.random.default_rng(0)
    for shape in ((50, 1, 200, 2), (50, 200, 1, 2)):
        steps = rng.laplace(0, 0.1, shape)
        lines = np.cumsum(steps, axis=1 if shape[2] == 1 else 2)
        # 20,000 differences: +- .7%
        assert attacks.fit_smoothness(lines) == pytest.approx(0.1, rel=0.03)


def test_the_scale_of_a_grid_counts_what_is_free():
    """Images of 2 x 2 pixels from the prior itself: four differences, three free.

    Three differences are drawn, and weighted by the fourth's probability.
    """
    rng = np.random.default_rng(0)
    scale, draws = 0.1, 200_000
    top, right, bottom = rng.laplace(0, scale, (3, draws))
    weight = np.exp(-np.abs(top + right - bottom) / scale)
    chosen = rng.choice(draws, 40_000, p=weight / weight.sum())
    a = np.zeros(len(chosen))
    b = a + top[chosen]
    d = b + right[chosen]
    c = d - bottom[chosen]
    images = np.stack([a, b, c, d], 1).reshape(-1, 2, 2, 1)
    assert attacks.fit_smoothness(images) == pytest.approx(scale, rel=0.02)


def test_scales_that_cannot_be_fitted():
    for images in (np.zeros((2, 3, 3)), np.zeros((2, 1, 1, 3))):
        with pytest.raises(ValueError, match="more than one pixel"):
            attacks.fit_smoothness(images)
    with pytest.raises(ValueError, match="with differences"):
        attacks.fit_smoothness(np.ones((2, 3, 3, 1)))


# What it is for


@pytest.mark.slow
def test_knowing_dp_sgd_beats_not_knowing():
    """Eight photographs with contrast, one a batch; 16,758 params; all are clipped.

    Measured, at z .003, .01 and .03: 28.9, 24.1 and 21.4 dB against 28.3, 23.8 and 18.6
    (a flat image has 15.7). With the total variation that is best for the targets
    themselves the unaware attack has 28.3, 24.4 and 21.6: what is won is the weight.
    """
    side, targets, steps = photos.SIDE, 8, 500
    network = models.build(
        "cnn",
        image_shape=(side, side, 1),
        num_classes=photos.CLASSES,
        width=8,
        activation="gelu",
    )
    params, _ = network.init(jax.random.key(0))
    base = clients.gradient(
        losses.classification(lambda p, x: network.apply(p, {}, x, True)[0])
    )
    scale = attacks.fit_smoothness(photos.public()["image"])
    photographs = photos.private()
    contrast = photographs["image"].std((1, 2, 3)) > 0.1
    photographs = {name: leaf[contrast] for name, leaf in photographs.items()}
    truth = photos.batches(photographs, 0, targets, 1)

    def psnr(attack, batch):
        state = attack.advance(attack.init(jax.random.key(7)), steps)
        image = attack.result(state).batch["image"]
        return metrics.psnr(image, batch["image"])

    @jax.jit
    def means(multiplier):
        def both(batch, seed):
            private = defenses.dp_sgd(base, 1.0, multiplier)
            observed = private(params, batch, jax.random.key(seed))
            candidate = candidates.pixels((1, side, side, 1), batch["label"])

            def at(client):
                return clients.at(client, params, jax.random.key(2))

            unaware = attacks.inverting_gradients(
                at(base), observed, candidate, steps=steps
            )
            aware = attacks.posterior(
                at(defenses.dp_sgd(base, 1.0, 0.0)),
                observed,
                candidate,
                noise=multiplier,
                prior=attacks.smoothness(scale),
                steps=steps,
            )
            return psnr(unaware, batch), psnr(aware, batch)

        return jax.tree.map(jnp.mean, jax.vmap(both)(truth, jnp.arange(targets)))

    for multiplier, margin in ((0.003, 0.0), (0.01, -0.3), (0.03, 1.5)):
        unaware, aware = means(jnp.float32(multiplier))
        assert aware > unaware + margin
        assert aware > 15.7 + 4
