"""Orthogonal noise, and CENSOR, which shares nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import clients, defenses

_GRADIENT = clients.gradient(toy.loss_fn)


def _cosine(a, b):
    a, b = (np.ravel(leaf).astype(np.float64) for leaf in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


def _norm(leaf):
    return np.linalg.norm(np.asarray(leaf, np.float64))


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_orthogonal_noise_is_orthogonal_and_as_long_as_it_says(strength):
    rng = np.random.default_rng(0)
    shapes = {"short": (30, 20), "two": 2, "one": 1, "kernel": (3, 3, 2, 4)}
    updates = {name: toy.floats(rng.normal(size=s)) for name, s in shapes.items()}
    updates["short"] *= 1e-3  # lengths other than 1

    @jax.jit
    def share(updates):
        transform = defenses.orthogonal_noise(jax.random.key(0), strength)
        return transform.update(updates, transform.init(updates))[0]

    shared = share(updates)
    np.testing.assert_array_equal(shared["one"], updates["one"])
    for name in ("short", "two", "kernel"):
        leaf = np.asarray(updates[name])
        noise = shared[name] - leaf
        # float32 rounding of the sum, relative to the shorter of the two
        assert abs(_cosine(noise, leaf)) < 2e-6
        assert _norm(noise) == pytest.approx(strength * _norm(leaf), rel=1e-5)
        expected = 1 / np.sqrt(1 + strength**2)
        assert _cosine(shared[name], leaf) == pytest.approx(expected, rel=1e-5)


def test_orthogonal_noise_has_no_preferred_direction():
    """Around a leaf along the first axis, it is uniform on the circle of the others."""

    @jax.jit
    @jax.vmap
    def share(key):
        updates = {"leaf": jnp.array([2.0, 0.0, 0.0])}
        transform = defenses.orthogonal_noise(key, 1.0)
        return transform.update(updates, transform.init(updates))[0]["leaf"]

    draws = np.asarray(share(jax.random.split(jax.random.key(0), 4000)))
    angles = np.arctan2(draws[:, 2], draws[:, 1])
    # moments of a uniform angle: 0 +- 1 / sqrt(n) = .016
    for order in (1, 2, 4):
        assert abs(np.mean(np.exp(1j * order * angles))) < 0.06


def test_censor_shares_for_every_client_another_direction_its_gradient_lacks():
    params, batch = toy.init(0), toy.batch(1, size=2)

    @jax.jit
    @jax.vmap
    def share(seed, rate):
        client = defenses.censor(_GRADIENT, toy.loss_fn, learning_rate=rate, trials=2)
        return client(params, batch, jax.random.key(seed))

    shared = share(jnp.arange(2), jnp.array([0.1, 1.0]))
    gradient = jax.jit(_GRADIENT)(params, batch, jax.random.key(9))
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(shared), strict=True)
    for true, both in pairs:
        for one in both:
            assert abs(_cosine(true, one)) < 1e-6
            assert _norm(one) == pytest.approx(_norm(true), rel=1e-5)
    kernels = shared["first"]["kernel"]  # 288 coordinates: 0 +- .06
    assert abs(_cosine(kernels[0], kernels[1])) < 0.3


def test_censor_shares_the_best_of_its_trials():
    """The losses of twenty trials are seen: the shared one has the lowest."""
    rate, seen = 0.5, []

    def watched(params, batch):
        loss = toy.loss_fn(params, batch)
        jax.debug.callback(lambda value: seen.append(float(value)), loss)
        return loss

    params, batch = toy.init(0), toy.batch(1, size=2)
    client = defenses.censor(_GRADIENT, watched, learning_rate=rate)
    shared = jax.jit(client)(params, batch, jax.random.key(0))
    jax.effects_barrier()
    assert len(np.unique(np.round(seen, 6))) == 20
    assert np.ptp(seen) > 0.01  # the choice matters here
    assert seen.index(min(seen)) != len(seen) - 1  # and is not of the last
    after = jax.tree.map(lambda p, s: p - rate * s, params, shared)
    # some roundings of float32, and far from the loss of any other trial
    assert float(toy.loss_fn(after, batch)) == pytest.approx(min(seen), rel=1e-5)
    assert sorted(seen)[1] > min(seen) * (1 + 1e-4)


def test_censor_shares_zeros_where_every_trial_is_nan():
    params, batch = toy.init(0), toy.batch(1)

    def broken(params, batch):
        return toy.loss_fn(params, batch) * jnp.nan

    client = defenses.censor(_GRADIENT, broken, learning_rate=1.0, trials=2)
    shared = jax.jit(client)(params, batch, jax.random.key(0))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(shared))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"trials": 0, "learning_rate": 1.0}, "trials=0 >= 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 > 0"),
    ],
)
def test_censor_ranges(wrong, message):
    with pytest.raises(ValueError, match=message):
        defenses.censor(_GRADIENT, toy.loss_fn, **wrong)
