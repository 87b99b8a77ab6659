"""Norms of trees by value, in every dtype and at every scale that it can hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax import trees

SCALES = (1e-35, 1e-25, 1e-20, 1.0, 1e20, 1e25, 1e35)
VALUES = np.random.default_rng(0).normal(size=60).astype(np.float32)


def _tree(scale=1.0):
    values = jnp.asarray(VALUES * np.float32(scale))
    return {"a": values[:40].reshape(5, 8), "b": values[40:], "empty": jnp.zeros(0)}


@jax.jit
def _all(tree):
    return trees.norm(tree), trees.unit(tree), trees.rms(tree)


@pytest.mark.parametrize("scale", SCALES)
def test_norms_at_every_scale(scale):
    norm, unit, rms = _all(_tree(scale))
    exact = np.linalg.norm(VALUES.astype(np.float64))
    # What is scaled by no power of two is rounded once more.
    np.testing.assert_allclose(norm / scale, exact, rtol=1e-6)
    np.testing.assert_allclose(rms / scale, exact / 60**0.5, rtol=1e-6)
    np.testing.assert_allclose(unit["b"], VALUES[40:] / exact, rtol=1e-6)


def test_the_rms_is_there_where_the_norm_is_too_large():
    tree = {"a": jnp.full((30, 40), 3e38), "b": jnp.full(60, -3e38)}
    norm, _, rms = _all(tree)
    assert norm == jnp.inf
    np.testing.assert_allclose(rms, 3e38, rtol=1e-6)


@pytest.mark.parametrize("dtype, value", [("float16", 300), ("bfloat16", 1e25)])
def test_norms_of_narrow_leaves(dtype, value):
    tree = {"a": jnp.full(4, value, dtype), "b": jnp.zeros(3)}
    norm, unit, _ = _all(tree)
    assert norm.dtype == unit["a"].dtype == jnp.float32
    np.testing.assert_allclose(norm, 2 * float(tree["a"][0]), rtol=1e-6)
    np.testing.assert_allclose(unit["a"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_slopes_at_every_scale(scale):
    """d|x| = <u, dx>; d<w, u> = <w - u <u, w>, dx> / |x|: in both modes, and again."""
    tree, along = _tree(scale), _tree(1.0)
    exact, w = VALUES / np.linalg.norm(VALUES), np.arange(60.0) / 60
    weights = {"a": jnp.asarray(w[:40].reshape(5, 8), "f4"), "b": jnp.asarray(w[40:])}

    def turned(tree):
        unit = trees.unit(tree)
        return sum(jnp.sum(unit[name] * weights[name]) for name in "ab")

    slope = jax.jit(jax.grad(trees.norm))(tree)
    np.testing.assert_allclose(slope["b"], exact[40:], rtol=1e-5, atol=1e-7)
    expected = (w - exact * (exact @ w)) / np.linalg.norm(VALUES)
    slope = jax.jit(jax.grad(turned))(tree)
    np.testing.assert_allclose(scale * slope["b"], expected[40:], rtol=1e-4, atol=1e-6)
    small = jax.tree.map(lambda leaf: leaf * np.float32(scale), along)
    twice = jax.jit(lambda t, d: jax.jvp(jax.grad(turned), (t,), (d,))[1])(tree, small)
    # Along the tree itself, a slope that falls as 1 / |x| falls by itself.
    np.testing.assert_allclose(scale * twice["b"], -expected[40:], rtol=1e-3, atol=1e-5)


def test_slopes_at_zero_are_finite_and_nan_is_no_zero():
    zero = jax.tree.map(jnp.zeros_like, _tree())
    assert trees.norm(zero) == 0 and not np.any(jax.grad(trees.norm)(zero)["a"])
    total = jax.grad(lambda tree: jnp.sum(trees.unit(tree)["a"]))(zero)
    assert np.all(np.isfinite(total["a"]))
    for value in (jnp.nan, jnp.inf):
        found = trees.norm({**zero, "b": jnp.full(20, value)})
        assert not np.isfinite(found)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("weight", [1.0, 7e4, 1e38])
def test_weighted_means_of_any_weights(dtype, weight):
    """float16 ends at 65,504, and sums of float32 weights at 3e38."""
    weights = weight * np.array([1.0, 0.0, 2.0], np.float32)
    rows = jnp.array([[3.0, -8.0], [jnp.nan, jnp.inf], [6.0, 1.0]], dtype)
    mean = trees.weighted_mean({"leaf": rows}, weights)["leaf"]
    assert mean.dtype == dtype
    eps = jnp.finfo(dtype).eps
    np.testing.assert_allclose(mean, [5.0, -2.0], rtol=2 * eps)


def test_small_leaves_are_summed_together():
    """One by one they take long to compile: a deep network has a hundred of them."""
    values = jnp.asarray(VALUES)
    small = {str(i): values * i for i in range(20)}
    tree = {**small, "half": values.astype("float16"), "large": jnp.ones((80, 80))}
    body = jax.make_jaxpr(trees.squared_norm)(tree)
    products = [eqn for eqn in body.eqns if eqn.primitive.name == "dot_general"]
    assert len(products) == 2
    exact = sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in tree.values())
    np.testing.assert_allclose(trees.squared_norm(tree), exact, rtol=1e-5)
    slope = jax.grad(trees.squared_norm)(tree)
    np.testing.assert_allclose(slope["7"], 14 * values, rtol=1e-6)
