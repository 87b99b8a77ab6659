"""Distances against closed forms on updates small enough to check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax import distances

GUESS = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # of norm 5
OBSERVED = {"a": jnp.array([0.0, 4.0]), "b": jnp.array([[3.0]])}  # of norm 5

ALL = {
    "squared": distances.squared,
    "l1": distances.l1,
    "cosine": distances.cosine,
    "masked": distances.masked(distances.cosine),
    "per_layer": distances.per_layer(distances.cosine),
    "weighted": distances.weighted(distances.squared, {"a": 2.0, "b": 1.0}),
}


@pytest.fixture(scope="module")
def pair():
    """Two random updates with something in common."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"a": (5, 3), "b": (7,)}
    one = {n: jax.random.normal(k, shapes[n]) for n, k in zip("ab", keys, strict=False)}
    other = {
        n: one[n] + jax.random.normal(k, shapes[n])
        for n, k in zip("ab", keys[2:], strict=True)
    }
    return one, other


@pytest.mark.parametrize(
    "distance, expected",
    [
        (distances.squared, 9 + 16 + 1),
        (distances.l1, 3 + 4 + 1),
        (distances.cosine, 1 - 12 / 25),
        # The first coordinate of "a" is hidden: (0, 0, 4) against (0, 4, 3).
        (distances.masked(distances.squared), 16 + 1),
        (distances.masked(distances.cosine), 1 - 12 / 20),
        # 25 and 1, averaged; in "a" a right angle, in "b" none.
        (distances.per_layer(distances.squared), 13),
        (distances.per_layer(distances.cosine), 0.5),
        (distances.weighted(distances.squared, {"a": 2.0, "b": 3.0}), 4 * 25 + 9),
        (
            distances.weighted(
                distances.l1, {"a": jnp.array([1.0, 0.5]), "b": jnp.array([[2.0]])}
            ),
            3 + 2 + 2,
        ),
        (
            distances.weighted(distances.per_layer(distances.l1), {"a": 0.0, "b": 4.0}),
            2,
        ),
    ],
)
def test_closed_forms(distance, expected):
    # Sums and roots of small integers: some eps of float32.
    np.testing.assert_allclose(distance(GUESS, OBSERVED), expected, rtol=5e-7)


@pytest.mark.parametrize("name", ALL)
def test_zero_where_they_agree(pair, name):
    np.testing.assert_allclose(ALL[name](pair[1], pair[1]), 0, atol=1e-12)


def test_cosine_is_one_minus_the_cosine(pair):
    one, other = (np.concatenate([np.ravel(u["a"]), u["b"]]) for u in pair)
    one, other = one.astype(np.float64), other.astype(np.float64)
    cos = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert 0.2 < cos < 0.9
    np.testing.assert_allclose(distances.cosine(*pair), 1 - cos, atol=1e-6)


def test_cosine_does_not_cancel_near_agreement():
    # An angle of 1e-5 is 5e-11 from 1, which float32 cannot tell from 1: 1 - cos is 0.
    observed = jnp.array([1.0, 0.0])
    guess = jnp.array([1.0, 1e-5])
    np.testing.assert_allclose(distances.cosine(guess, observed), 5e-11, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "masked", "per_layer"])
def test_direction_alone_counts_to_the_bit(pair, name):
    one, other = pair
    compute = jax.jit(jax.value_and_grad(ALL[name]))
    value, grad = compute(one, other)
    for scale in (4.0, 2.0**-20):
        scaled = jax.tree.map(lambda leaf, scale=scale: scale * leaf, other)
        again = compute(one, scaled)
        np.testing.assert_array_equal(again[0], value)
        jax.tree.map(np.testing.assert_array_equal, again[1], grad)


def test_masked_ignores_what_was_pruned(pair):
    guess, observed = pair
    pruned = {**observed, "b": observed["b"].at[2:5].set(0.0)}
    changed = {**guess, "b": guess["b"].at[3].add(100.0)}
    for base in (distances.squared, distances.cosine, distances.l1):
        masked = distances.masked(base)
        assert masked(guess, pruned) == masked(changed, pruned)
        assert base(guess, pruned) != base(changed, pruned)
        shown = {**guess, "b": guess["b"].at[0].add(1.0)}
        assert masked(guess, pruned) != masked(shown, pruned)


@pytest.mark.parametrize("name", ALL)
def test_zero_and_equal_updates_have_finite_values_and_gradients(pair, name):
    one, other = pair
    zero = jax.tree.map(jnp.zeros_like, one)
    compute = jax.jit(jax.value_and_grad(ALL[name]))
    for guess, observed in [(zero, other), (one, zero), (zero, zero), (one, one)]:
        for leaf in jax.tree.leaves(compute(guess, observed)):
            assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["squared", "cosine", "masked", "weighted"])
def test_squared_residuals_are_a_least_squares_problem(pair, name):
    # What second-order attacks rely on: the value is quadratic in the residual.
    residual = ALL[name].residual(*pair)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, residual)
    value = ALL[name].reduce(residual)
    np.testing.assert_allclose(ALL[name].reduce(doubled), 4 * value, rtol=1e-6)


@pytest.mark.parametrize(
    "scale, dtype",
    [(s, "float32") for s in (1e-25, 1e-20, 1.0, 1e20, 1e25)]
    + [(300.0, "float16"), (1e-4, "float16"), (1e25, "bfloat16")],
)
@pytest.mark.parametrize("name", ["cosine", "per_layer", "masked"])
def test_directions_at_any_scale_and_in_any_dtype(pair, scale, dtype, name):
    """Opposite updates are at distance 2, and were at 0 where squares were lost."""

    @jax.jit
    def compute(guess, observed):
        return jax.value_and_grad(ALL[name])(guess, observed)

    one, other = (
        jax.tree.map(lambda leaf: (scale * jnp.asarray(leaf)).astype(dtype), tree)
        for tree in pair
    )
    opposite, _ = compute(one, jax.tree.map(jnp.negative, one))
    np.testing.assert_allclose(opposite, 2, rtol=1e-6)
    rounding = float(jnp.finfo(dtype).eps)
    value, slope = compute(one, other)
    exact, exact_slope = compute(*pair)
    np.testing.assert_allclose(value, exact, atol=2 * rounding)
    if dtype == "float32":
        scaled = np.asarray(slope["a"], np.float64) * scale
        np.testing.assert_allclose(scaled, exact_slope["a"], atol=1e-6)


def test_squares_of_narrow_updates_are_summed_in_float32():
    guess = {"a": jnp.array([300.0, 6e4], jnp.float16)}
    observed = {"a": jnp.array([-300.0, -6e4], jnp.float16)}
    sums = 600.0 + float(guess["a"][1]) * 2, 600.0**2 + (2 * float(guess["a"][1])) ** 2
    for distance, expected in zip((distances.l1, distances.squared), sums, strict=True):
        found = distance(guess, observed)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
