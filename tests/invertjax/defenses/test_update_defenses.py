"""Closed forms and conservation laws of the defenses that change an update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

import models
from invertjax import defenses


def _apply(transform, updates):
    def share(updates):
        return transform.update(updates, transform.init(updates), updates)[0]

    return jax.jit(share)(updates)  # one program: a test compiles but once


def _one(array):
    return {"leaf": jnp.asarray(array, jnp.float32)}


def _normal(*shapes):
    rng = np.random.default_rng(0)
    return {f"leaf{i}": toy.floats(rng.normal(size=s)) for i, s in enumerate(shapes)}


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Fresh randomness


@pytest.mark.parametrize(
    "build",
    [
        lambda key: defenses.orthogonal_noise(key, 1.0),
        lambda key: defenses.outpost(key, 1.0, beta=0.0, noisy=1.0, pruned=0.0),
        lambda key: defenses.sparsify(key, 0.5),
        lambda key: defenses.stochastic_quantise(key, 2),
    ],
    ids=["orthogonal_noise", "outpost", "sparsify", "stochastic_quantise"],
)
def test_leaves_rounds_and_clients_have_their_own_draws(build):
    """Two equal leaves, two rounds, two clients: no two changes are correlated."""
    leaf = np.random.default_rng(0).choice([-0.5, 0.5], 20_000)
    leaf[0] = 1.0  # the scale of the quantisation
    updates = {"a": toy.floats(leaf), "b": toy.floats(leaf)}

    @jax.jit  # updates are an argument: as a constant they would be sorted by XLA
    @functools.partial(jax.vmap, in_axes=(0, None))
    def two_rounds(seed, updates):
        transform = build(jax.random.key(seed))
        first, state = transform.update(updates, transform.init(updates), updates)
        second, _ = transform.update(updates, state, updates)
        return jnp.stack([first["a"], first["b"], second["a"], second["b"]])

    shared = np.asarray(two_rounds(jnp.array([0, 1, 0]), updates))
    np.testing.assert_array_equal(shared[0], shared[2])
    # times the sign of the leaf: what is left random is the draw
    draws = ((shared[:2] - leaf) * np.sign(leaf)).reshape(8, -1)
    assert np.all(draws.std(1) > 0.1)
    # 20,000 draws: 0 +- .007, one draw used twice has 1
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.05


# Clipping layer by layer


def test_clip_layers_bounds_every_leaf_on_its_own():
    updates = {"long": jnp.array([3.0, 4.0]), "short": jnp.array([[0.6], [0.8]])}
    shared = _apply(defenses.clip_layers(2.0), updates)
    np.testing.assert_allclose(shared["long"], [1.2, 1.6], rtol=1e-6)
    _equal(shared["short"], updates["short"])
    # where flat clipping takes both
    flat = _apply(defenses.clip(2.0), updates)
    assert optax.tree.norm(flat["short"]) < 0.5


# Error feedback


def _rounds(transform, inputs):
    """Shares and last state over the leading axis of `inputs`."""

    def one(state, updates):
        shared, state = transform.update(updates, state)
        return state, shared

    start = transform.init(jax.tree.map(lambda leaf: leaf[0], inputs))
    state, shared = jax.lax.scan(one, start, inputs)
    return shared, state


@pytest.mark.parametrize(
    "inner",
    [defenses.prune(0.9), defenses.quantise(3), defenses.clip(0.5)],
    ids=["prune", "quantise", "clip"],
)
def test_error_feedback_loses_nothing(inner):
    """Shared over rounds plus the residual is the sum of the updates."""
    inputs = _normal((30, 20, 5), (30, 7))

    @jax.jit
    @jax.vmap
    def run(scale):
        scaled = optax.tree.scale(scale, inputs)
        return _rounds(defenses.error_feedback(inner), scaled)

    shared, state = run(jnp.array([1.0, 1e-3]))
    for i, scale in enumerate((1.0, 1e-3)):
        for name, leaf in inputs.items():
            total = shared[name][i].sum(0) + state.residual[name][i]
            # 30 sums of float32 of size up to 10, each off by 6e-8 of it at most
            np.testing.assert_allclose(
                total, scale * leaf.sum(0), atol=scale * 1e-4, rtol=0
            )
    # without it, much is
    plain = jax.jit(lambda inputs: _rounds(inner, inputs)[0])(inputs)
    lost = [np.sum(plain[name] - leaf, 0) for name, leaf in inputs.items()]
    assert max(np.abs(leaf).max() for leaf in lost) > 1


def test_error_feedback_follows_its_recursion():
    """Two rounds by hand: what was owed is shared in the next round."""
    transform = defenses.error_feedback(defenses.prune(0.5))
    state = transform.init(_one([0.0, 0.0]))
    shared, state = transform.update(_one([3.0, 2.0]), state)
    np.testing.assert_array_equal(shared["leaf"], [3, 0])
    np.testing.assert_array_equal(state.residual["leaf"], [0, 2])
    shared, state = transform.update(_one([3.0, 2.0]), state)
    np.testing.assert_array_equal(shared["leaf"], [0, 4])
    np.testing.assert_array_equal(state.residual["leaf"], [3, 0])


def test_error_feedback_of_the_identity_keeps_nothing():
    inputs = _normal((5, 4), (5, 3, 2))
    shared, state = _rounds(defenses.error_feedback(optax.identity()), inputs)
    _equal(shared, inputs)
    _equal(state.residual, jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), inputs))


def test_error_feedback_takes_noise_back():
    """One draw is left of sixteen: the noise of the last round."""
    inputs = {"leaf": jnp.zeros((16, 10_000))}
    noise = defenses.gaussian_noise(jax.random.key(0), 1.0)
    shared, _ = _rounds(defenses.error_feedback(noise), inputs)
    # 10,000 draws: 1 +- .007; without feedback 4
    assert shared["leaf"].sum(0).std() == pytest.approx(1.0, rel=0.03)


def test_error_feedback_keeps_its_law_where_updates_are_narrow():
    """Ten rounds of bfloat16, of 8 bits, lose nothing of what float32 resolves."""
    transform = defenses.error_feedback(defenses.quantise(3))
    updates = {"leaf": jnp.array([1.0, 0.3, -0.07], jnp.bfloat16)}
    shared, state = _rounds(
        transform, jax.tree.map(lambda leaf: jnp.stack([leaf] * 10), updates)
    )
    assert shared["leaf"].dtype == jnp.bfloat16
    assert state.residual["leaf"].dtype == jnp.float32
    assert np.any(np.abs(state.residual["leaf"]) > 0.01)
    total = np.asarray(shared["leaf"], np.float64).sum(0) + state.residual["leaf"]
    expected = 10 * np.asarray(updates["leaf"], np.float64)
    np.testing.assert_allclose(total, expected, rtol=0, atol=1e-5)


# Sparsity


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_prune_whole_ranks_all_leaves_together(share):
    updates = _normal((40, 25), 10)
    updates["leaf1"] = updates["leaf1"] * 0.01  # vanishes first
    shared = _apply(defenses.prune(share, whole=True), updates)
    before = np.concatenate([np.ravel(leaf) for leaf in updates.values()])
    after = np.concatenate([np.ravel(leaf) for leaf in shared.values()])
    least = np.argsort(np.abs(before), kind="stable")[: round(share * 1010)]
    expected = before.copy()
    expected[least] = 0
    np.testing.assert_array_equal(after, expected)
    if share == 0.3:
        assert not np.any(shared["leaf1"])


def test_prune_whole_breaks_ties_by_position_and_mixes_types():
    updates = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones((2, 2), jnp.float32)}
    shared = _apply(defenses.prune(0.625, whole=True), updates)
    np.testing.assert_array_equal(shared["a"], [0, 0, 0, 0])
    np.testing.assert_array_equal(shared["b"], [[0, 1], [1, 1]])
    assert shared["a"].dtype == jnp.bfloat16 and shared["b"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_sparsify_is_unbiased_with_the_variance_it_says(share, dtype):
    updates = {"leaf": jnp.full(200_000, 2.0, dtype)}
    shared = _apply(defenses.sparsify(jax.random.key(0), share), updates)["leaf"]
    shared = np.asarray(shared, np.float64)
    zero, variance = np.mean(shared == 0), 4 * share / (1 - share)
    # the share of zeros: sqrt(.09 / 2e5) = .0007
    assert zero == pytest.approx(share, abs=0.003)
    assert len(np.unique(shared)) == 2
    rounding = 0.004 if dtype == jnp.bfloat16 else 1e-5
    assert shared.max() == pytest.approx(2 / (1 - share), rel=rounding)
    bias = 4 * np.sqrt(variance / shared.size) + 2 * rounding
    assert shared.mean() == pytest.approx(2.0, abs=bias)
    assert shared.var() == pytest.approx(variance, rel=0.02)


def test_sparsify_biased_keeps_coordinates_exactly():
    updates = _normal((50, 40))
    shared = _apply(defenses.sparsify(jax.random.key(0), 0.4, unbiased=False), updates)
    leaf, before = np.asarray(shared["leaf0"]), np.asarray(updates["leaf0"])
    np.testing.assert_array_equal(leaf[leaf != 0], before[leaf != 0])
    assert np.mean(leaf == 0) == pytest.approx(0.4, abs=0.05)


# Stochastic rounding


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_stochastic_quantise_is_unbiased_on_quantises_levels(bits):
    levels = 2 ** (bits - 1) - 1
    values = np.array([-1, -0.83, -0.4, -0.05, 0, 0.12, 0.37, 0.71], np.float32) * 3
    draws, step = 40_000, 3.0 / levels
    updates = _one(np.tile(values, (draws, 1)))
    transform = defenses.stochastic_quantise(jax.random.key(0), bits)
    shared = np.asarray(_apply(transform, updates)["leaf"], np.float64)
    whole = shared / step
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-5)
    assert np.abs(shared - values).max() <= step * (1 + 1e-5)
    share = values / step - np.floor(values / step)
    spread = np.sqrt(share * (1 - share)) * step
    # 4.5 standard deviations of the mean: rounding to nearest is far outside
    error = np.abs(shared.mean(0) - values)
    assert np.all(error <= 4.5 * spread / np.sqrt(draws) + 1e-5)
    nearest = np.asarray(_apply(defenses.quantise(bits), updates)["leaf"])[0]
    assert np.abs(nearest - values).max() > 20 * (spread / np.sqrt(draws)).max()
    inner = share > 0.01
    np.testing.assert_allclose(shared.std(0)[inner], spread[inner], rtol=0.05)


# Dropped layers


def _paths_left(shared):
    """Paths of the layers of which anything is shared."""
    found = jax.tree_util.tree_flatten_with_path(shared)[0]
    names = (
        jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        for path, leaf in found
        if np.any(leaf)
    )
    return list(dict.fromkeys(names))


@pytest.mark.parametrize("name", [str, int])
def test_drop_counts_layers_in_natural_order(name):
    layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    layers = {name(i): layer for i in range(12)}
    updates = {"layers": layers, "norms": {name(0): layer}}
    sweep = jax.jit(jax.vmap(lambda count: _apply(defenses.drop(count), updates)))
    shared = jax.tree.map(np.asarray, sweep(jnp.arange(15)))
    for count in range(15):
        left = {f"layers/{i}" for i in range(count, 12)}
        left |= {"norms/0"} if count < 13 else set()
        assert (
            set(_paths_left(jax.tree.map(lambda leaf, i=count: leaf[i], shared)))
            == left
        )
    _equal(_apply(defenses.drop(0), updates), updates)


def test_drop_takes_the_order_that_paths_do_not_tell():
    network = models.build("resnet20", image_shape=(8, 8, 1), num_classes=3, width=4)
    params = jax.eval_shape(network.init, jax.random.key(0))[0]
    updates = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    order = ("stem", "stem_norm")
    assert {"stem", "stem_norm"} <= set(_paths_left(_apply(defenses.drop(5), updates)))
    left = _paths_left(_apply(defenses.drop(3, order=order), updates))
    assert {"stem", "stem_norm", "blocks/0/layers/0"}.isdisjoint(left)
    assert len(left) == len(_paths_left(updates)) - 3
    with pytest.raises(ValueError, match="order='stam' to be one of"):
        _apply(defenses.drop(1, order=("stam",)), updates)


def test_there_is_nothing_perpendicular_to_nothing():
    for leaf in (np.zeros(5), np.ones(1)):
        found = defenses.orthogonal.perpendicular(
            jax.random.key(0), [jnp.asarray(leaf)]
        )
        np.testing.assert_array_equal(found[0], np.zeros_like(leaf))
