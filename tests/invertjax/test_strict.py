"""Healthy runs where JAX looks for NaN and refuses mixed types; other precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

import invertjax
from invertjax import attacks, candidates, clients, driver

CLIENTS = {
    "gradient": clients.gradient(toy.loss_fn),
    "adam": clients.local_sgd(toy.loss_fn, optax.adam(1e-3), steps=2),
}


@pytest.fixture
def strict():
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize(
    "client, attack",
    [
        ("gradient", attacks.inverting_gradients),
        ("adam", attacks.inverting_gradients),
        ("gradient", attacks.gauss_newton),  # it stops before its budget
    ],
)
def test_a_healthy_inversion_under_both(strict, client, attack):
    share = toy.at(toy.init(0), CLIENTS[client])
    batch = toy.batch(1)
    guess = candidates.pixels(batch["image"].shape, batch["label"])
    made = attack(share, share(batch), guess, steps=12)
    result = driver.invert(jax.random.key(1), made)
    assert result.loss < result.losses[0]


def test_a_healthy_audit_under_both(strict):
    batches = {name: np.asarray(leaf)[None] for name, leaf in toy.batch(1).items()}
    report = invertjax.audit(
        jax.random.key(0),
        toy.loss_fn,
        toy.init(0),
        batches=batches,
        attack="inverting_gradients",
        steps=3,
    )
    assert np.isfinite(report.rows[0]["loss"])


def convolved(params, batch):
    out = jax.lax.conv_general_dilated(batch["image"], params["conv"], (1, 1), "SAME")
    return toy.loss_fn(params["rest"], {**batch, "image": out})


def test_float64_guesses_of_a_float32_network_are_refused_in_words():
    params = {"conv": jnp.ones((6, 6, 1, 1)), "rest": toy.init(0)}
    batch = toy.batch(1)
    share = toy.at(params, clients.gradient(convolved))
    observed = share(batch)
    guess = candidates.pixels(batch["image"].shape, np.asarray(batch["label"]))
    with jax.enable_x64(True):
        with pytest.raises(
            ValueError, match="jax_enable_x64 .* float64, e.g."
        ) as raised:
            attacks.deep_leakage(share, observed, guess, steps=1)
    assert "\n" not in str(raised.value)


def test_a_candidate_with_bounds_of_its_own_keeps_them():
    params, batch = toy.init(0), toy.batch(1)
    batch = {**batch, "image": 4 * batch["image"] - 2}
    share = toy.at(params)
    free = candidates.pixels(batch["image"].shape, batch["label"])
    wide = candidates.box(free, -2.0, 2.0)
    made = attacks.inverting_gradients(
        share, share(batch), wide, steps=60, learning_rate=0.1, total_variation=0.0
    )
    image = driver.invert(jax.random.key(1), made).batch["image"]
    assert -2 <= image.min() < -0.2 and 1.2 < image.max() <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_images_of_any_precision_are_audited_under_x64(dtype):
    """The client takes them in the precision of a guess."""
    with jax.enable_x64(True):
        params = {"conv": np.ones((6, 6, 1, 1)), "rest": toy.init(0)}
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], toy.batch(1))
        batch["image"] = batch["image"].astype(dtype)
        found = invertjax.audit(
            jax.random.key(0),
            convolved,
            params,
            batches=batch,
            attack="inverting_gradients",
            steps=2,
            control=False,
        )
        assert found.arrays[0]["image"].dtype == np.float64
        assert found.rows[0]["fit_truth"] < 1e-20
