"""Priors against images whose value is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invertjax import priors
from invertjax.trees import squared_norm

T = jnp.zeros(())


def images(rows):
    """A batch of one image of one channel."""
    return {"image": jnp.asarray(np.asarray(rows, np.float32)[None, :, :, None])}


@pytest.mark.parametrize(
    "rows, anisotropic, isotropic",
    [
        ([[0.5, 0.5], [0.5, 0.5]], 0, 0),
        # A step to the right: |dx| = 1 in 1 of 2 columns of neighbours, no |dy|.
        ([[0, 0, 1], [0, 0, 1], [0, 0, 1]], 1 / 2, 3 / 9),
        ([[0, 0, 0], [0, 0, 0], [1, 1, 1]], 1 / 2, 3 / 9),
        # A corner: one of 4 pixels has dx = dy = 1; two more an edge each.
        ([[1, 0], [0, 0]], 1 / 2 + 1 / 2, np.sqrt(2) / 4),
        ([[0, 1], [1, 0]], 1 + 1, (np.sqrt(2) + 1 + 1) / 4),
        # One pixel high: there are no neighbours below.
        ([[0, 1, 1]], 1 / 2, 1 / 3),
        ([[0], [3]], 3, 3 / 2),
        ([[7]], 0, 0),
    ],
)
def test_total_variation_of_hand_made_images(rows, anisotropic, isotropic):
    batch = images(rows)
    for expected, flag in ((anisotropic, False), (isotropic, True)):
        prior = priors.total_variation(2.0, isotropic=flag)
        value = jax.jit(prior)(batch, T)
        np.testing.assert_allclose(value, 2 * expected, rtol=1e-6)


def test_total_variation_is_a_mean_over_images_and_channels():
    one = images([[0, 1], [1, 0]])["image"]
    flat = jnp.zeros_like(one)
    prior = priors.total_variation(1.0)
    for axis in (0, 3):
        both = {"image": jnp.concatenate([one, flat], axis)}
        np.testing.assert_allclose(jax.jit(prior)(both, T), 1.0, rtol=1e-6)


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("rows", [np.full((3, 3), 0.5), [[0.2]], [[0.2, 0.4]]])
def test_total_variation_has_a_finite_gradient(rows, isotropic):
    prior = priors.total_variation(1.0, isotropic=isotropic)
    grad = jax.jit(jax.grad(prior))(images(rows), T)["image"]
    assert jnp.isfinite(grad).all()


def test_total_variation_pulls_neighbours_together():
    for isotropic in (False, True):
        prior = priors.total_variation(1.0, isotropic=isotropic)
        grad = jax.jit(jax.grad(prior))(images([[0.2, 0.4]]), T)["image"].ravel()
        assert grad[0] < 0 < grad[1]


IMAGES = [[[0, 0.3, 1], [0.2, 0.9, 0.1]], [[0.0, 0.0, 1.0]], [[0.0], [3.0]], [[7.0]]]


@pytest.mark.parametrize("rows", IMAGES)
def test_smoothed_total_variation_tends_to_total_variation(rows):
    batch = images(rows)
    wanted = priors.total_variation(2.0)(batch, T)
    for smoothing in (1e-1, 1e-3):
        gap = priors.smoothed_total_variation(2.0, smoothing=smoothing)(batch, T)
        gap -= wanted
        # sqrt(d^2 + s^2) - |d| is at most s, where d = 0: two means, a weight of two.
        assert 0 <= gap + 1e-6 and gap <= 4 * smoothing
    flat = priors.smoothed_total_variation(2.0, smoothing=0.5)
    np.testing.assert_allclose(flat(images(np.full((2, 2), 0.3)), T), 2 * 2 * 0.5)


@pytest.mark.parametrize("rows", IMAGES)
def test_smoothed_total_variation_has_the_slope_of_its_residual(rows):
    prior = priors.smoothed_total_variation(lambda t: 2 + t, smoothing=0.1)

    def half_squares(batch, t):
        return 0.5 * squared_norm(prior.residual(batch, t))

    t = jnp.array(0.5)
    slopes = [
        jax.jit(jax.grad(fun))(images(rows), t)["image"]
        for fun in (prior, half_squares)
    ]
    assert jnp.isfinite(slopes[0]).all()
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-6)
    assert jnp.any(slopes[0] != 0) == (np.size(rows) > 1)


def test_smoothed_total_variation_has_no_curvature_below_its_own():
    # At d = 1 the value is all but straight; its model is the parabola above it.
    prior = priors.smoothed_total_variation(1.0, smoothing=0.1)

    def difference(d):
        return {"image": jnp.stack([0.0, d]).reshape(1, 1, 2, 1)}

    _, push = jax.linearize(lambda d: prior.residual(difference(d), T), 1.0)
    curvature = squared_norm(push(1.0))
    np.testing.assert_allclose(curvature, 1 / np.sqrt(1.01), rtol=1e-5)


def test_l2_is_the_mean_square_about_the_center():
    batch = images([[0, 1], [0.5, 0.5]])
    np.testing.assert_allclose(priors.l2(3.0)(batch, T), 3 * 1.5 / 4, rtol=1e-6)
    np.testing.assert_allclose(priors.l2(1.0, center=0.5)(batch, T), 0.5 / 4, rtol=1e-6)


def test_batch_norm_is_the_distance_of_the_statistics():
    def statistics(params, batch):
        value = params * batch["image"]
        return [{"mean": value.mean((0, 1, 2)), "var": value.var((0, 1, 2))}]

    batch = images([[0, 2], [0, 2]])  # scaled by 2: mean 2, variance 4
    observed = statistics(2.0, batch)
    prior = priors.batch_norm(0.5, statistics, 2.0, observed)
    assert prior(batch, T) == 0
    shifted = images([[1, 3], [1, 3]])  # mean 4, variance 4
    np.testing.assert_allclose(prior(shifted, T), 0.5 * 2**2, rtol=1e-6)
    spread = images([[-1, 3], [-1, 3]])  # mean 2, variance 16
    np.testing.assert_allclose(prior(spread, T), 0.5 * 12**2, rtol=1e-6)


def test_group_consistency_is_the_distance_from_the_mean_of_the_restarts():
    image = np.random.default_rng(0).uniform(size=(3, 2, 4, 4, 1)).astype(np.float32)
    restarts = {"image": jnp.asarray(image)}
    prior = priors.group_consistency(2.0)
    compute = jax.vmap(
        jax.value_and_grad(prior), in_axes=(0, None), axis_name="restarts"
    )
    values, grads = jax.jit(compute)(restarts, T)
    gap = image - image.mean(0, keepdims=True)
    np.testing.assert_allclose(values, 2 * (gap**2).mean((1, 2, 3, 4)), rtol=1e-5)
    # The mean is a constant: the gradient is that of |x - c|^2 alone.
    expected = 4 * gap / image[0].size
    np.testing.assert_allclose(grads["image"], expected, rtol=0, atol=1e-6)


def test_group_consistency_names_its_axis():
    restarts = {"image": jnp.arange(2.0).reshape(2, 1, 1, 1, 1)}
    prior = priors.group_consistency(1.0, axis_name="runs")
    values = jax.vmap(lambda batch: prior(batch, T), axis_name="runs")(restarts)
    np.testing.assert_allclose(values, 0.25)


@pytest.mark.parametrize(
    "make",
    [
        priors.total_variation,
        priors.l2,
        lambda w: priors.batch_norm(w, lambda p, b: p * b["image"], 1.0, jnp.zeros(1)),
    ],
    ids=["total_variation", "l2", "batch_norm"],
)
def test_a_weight_may_be_a_schedule_or_traced(make):
    batch = {"image": jnp.arange(8.0).reshape(1, 2, 2, 2)[..., :1]}
    if make not in (priors.total_variation, priors.l2):
        batch = {"image": jnp.ones(1)}
    unit = make(1.0)(batch, T)
    assert unit > 0
    scheduled = make(optax.linear_schedule(0.0, 4.0, 1))
    np.testing.assert_allclose(scheduled(batch, jnp.array(0.25)), unit, rtol=1e-6)
    traced = jax.jit(lambda weight: make(weight)(batch, T))
    np.testing.assert_allclose(traced(3.0), 3 * unit, rtol=1e-6)


def test_combined_adds_up_and_none_is_flat():
    batch = images([[0, 1], [1, 0]])
    parts = [priors.total_variation(1.0), priors.l2(2.0), priors.none]
    np.testing.assert_allclose(priors.combined(*parts)(batch, T), 2 + 1, rtol=1e-6)
    assert priors.combined()(batch, T) == priors.none(batch, T) == 0
