"""Outpost: what it adds, where, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import defenses


def _normal(*shape):
    return toy.floats(np.random.default_rng(len(shape)).normal(size=shape))


def _shared(updates, params, scale, **options):
    def share(updates, params):
        transform = defenses.outpost(jax.random.key(0), scale, **options)
        return transform.update(updates, transform.init(params), params)[0]

    return jax.tree.map(np.asarray, jax.jit(share)(updates, params))


def test_outpost_prunes_and_adds_noise_where_and_as_much_as_it_says():
    updates = {"a": _normal(200, 100), "b": 3 * _normal(10_000)}
    params = {"a": 0.5 * updates["a"], "b": updates["b"]}  # variances 1/4 and 9
    shared = _shared(updates, params, 0.4, noisy=0.5, pruned=0.8)
    size = np.concatenate([np.ravel(np.abs(leaf)) for leaf in updates.values()])
    threshold = np.sort(size)[round(0.5 * size.size)]
    for name, risk in (("a", 0.25), ("b", 1.0)):  # min(1, variance)
        leaf = np.asarray(updates[name])
        pruned = np.abs(leaf) < np.sort(np.abs(leaf), None)[round(0.8 * leaf.size)]
        noise = shared[name] - np.where(pruned, 0, leaf)
        chosen = np.abs(leaf) >= threshold
        np.testing.assert_array_equal(noise != 0, chosen)
        # 5,000 draws: a standard deviation is known to 1 / sqrt(2 n) = .01
        drawn = noise[chosen]
        assert drawn.size > 5000
        assert drawn.std() == pytest.approx(0.4 * risk, rel=0.04)


def test_outpost_adds_nothing_where_weights_are_equal():
    updates = {"a": _normal(50)}
    shared = _shared(updates, {"a": jnp.ones(50)}, 0.4, pruned=0.0)
    np.testing.assert_array_equal(shared["a"], updates["a"])


def test_outpost_acts_ever_more_rarely():
    updates = {"a": _normal(8)}

    @jax.jit
    @jax.vmap
    def acted(key):
        transform = defenses.outpost(key, 0.5, step=2, beta=0.5)

        def one(state, _):
            shared, state = transform.update(updates, state, updates)
            return state, jnp.any(shared["a"] != updates["a"])

        return jax.lax.scan(one, transform.init(updates), length=9)[1]

    share = acted(jax.random.split(jax.random.key(0), 4000)).mean(0)
    expected = 1 / (1 + 0.5 * (2 + np.arange(9)))
    # 4,000 draws: four times sqrt(p (1 - p) / n) at most
    np.testing.assert_allclose(share, expected, atol=0.032)


def test_outpost_always_acts_at_the_start():
    """Unlike the code that came with the paper, which returns its input."""
    updates = {"a": _normal(8)}
    for seed in range(5):
        transform = defenses.outpost(jax.random.key(seed), 0.5)
        shared = transform.update(updates, transform.init(updates), updates)[0]
        assert np.count_nonzero(shared["a"] != updates["a"]) >= 6


def test_outpost_needs_params():
    updates = {"a": _normal(8)}
    transform = defenses.outpost(jax.random.key(0), 0.5)
    with pytest.raises(ValueError, match="params=None"):
        transform.update(updates, transform.init(updates))


def test_its_probability_falls_by_an_eighth_a_step_if_not_said_otherwise():
    update = {"weight": jnp.arange(1.0, 9.0)}

    def shared(i, **options):
        made = defenses.outpost(jax.random.key(i), 0.1, step=8, **options)
        return made.update(update, made.init(update), update)[0]["weight"]

    for i in range(8):
        np.testing.assert_array_equal(shared(i), shared(i, beta=0.125))
    assert any(np.any(shared(i) != shared(i, beta=2.0)) for i in range(8))
