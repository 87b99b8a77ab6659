"""Secure aggregation: masks cancel to the bit, and hide what they mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from invertjax import federated
from invertjax.federated import secure_aggregation as secure


def _seen(updates, weights, params=None):
    if params is None:
        params = jax.tree.map(lambda leaf: leaf[0], updates)
    key = jax.random.key(7)
    return federated.Seen(
        params, params, updates, jnp.asarray(weights), jnp.int32(0), key
    )


def _updates(count, scale=1.0):
    rng = np.random.default_rng(count)
    shapes = {"kernel": (count, 5, 3), "bias": (count, 3), "scale": (count,)}
    return {
        name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def _sent(words, seed, count):
    key = jax.random.key(seed)

    @jax.jit
    @jax.vmap
    def send(words, client):
        return secure.masked(key, words, client, count)

    return send(words, jnp.arange(count))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_masks_cancel_bit_for_bit(count):
    words = jax.vmap(lambda u: secure.encode(u, 1 / count, 24))(_updates(count))
    sent = _sent(words, 0, count)
    for name, leaf in words.items():
        plain = np.asarray(leaf).astype(object).sum(0)  # Python integers: no overflow
        masked = np.asarray(secure.total(sent)[name])
        np.testing.assert_array_equal(masked.astype(object), plain % 2**32)
        assert masked.dtype == np.uint32
        hidden = np.asarray(sent[name] != leaf)
        # one of these words in 2^32 is masked with zero
        assert hidden.all() if count > 1 else not hidden.any()


@pytest.mark.parametrize("client", [0, 1, 3])
def test_one_masked_update_is_uniform(client):
    """Every byte, by chi-square of 256 bins; plain words fail the same test."""
    words = secure.encode({"leaf": jnp.full(2**14, 0.25)}, 1.0, 24)
    key = jax.random.key(1)
    sent = jax.jit(lambda words: secure.masked(key, words, client, 4))(words)

    def p_values(words):
        for shift in (0, 8, 16, 24):
            byte = (np.asarray(words["leaf"]) >> shift) & 255
            yield scipy.stats.chisquare(np.bincount(byte, minlength=256)).pvalue

    # 12 honest tests in all: below 1e-5 by chance once in 8000 seeds
    assert min(p_values(sent)) > 1e-5
    assert max(p_values(words)) < 1e-5


def test_masks_differ_between_pairs_rounds_and_leaves():
    zeros = {"a": jnp.zeros((3, 20_000), jnp.uint32)}
    zeros["b"] = zeros["a"]
    one, two = _sent(zeros, 0, 3), _sent(zeros, 1, 3)
    again = _sent(zeros, 0, 3)
    np.testing.assert_array_equal(one["a"], again["a"])
    draws = [*one["a"], one["b"][0], two["a"][0]]
    # 20,000 draws: correlation 0 +- .007. The three sum to zero modulo 2^32, which is
    # no linear relation: any two of them are independent.
    correlation = np.corrcoef(np.array(draws, dtype=float)) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.05


def test_every_pair_has_a_stream_of_its_own():
    """With one stream for all pairs of a client, two who collude would read a third."""
    zeros = {"leaf": jnp.zeros(20_000, jnp.uint32)}
    key = jax.random.key(0)

    @jax.jit
    def sent(client, count):
        return secure.masked(key, zeros, client, count)["leaf"]

    first = sent(0, 2)  # of the pair 0, 1
    streams = {"01": first, "02": sent(0, 3) - first, "12": sent(1, 3) + first}
    np.testing.assert_array_equal(sent(2, 3), -streams["02"] - streams["12"])
    rows = np.array(list(streams.values()), dtype=float)
    # 20,000 draws: correlation 0 +- .007, one stream used twice has 1
    assert np.abs(np.corrcoef(rows) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("weight", [1.0, 7e4, 1e38])
def test_narrow_updates_and_large_weights_have_the_mean_of_float32(dtype, weight):
    updates = {"leaf": jnp.array([[1.5, -2.0], [3.0, 5.0], [0.25, 1.0]], dtype)}
    weights = weight * np.array([1.0, 2.0, 1.0], np.float32)
    secret = federated.secure_mean(16)(_seen(updates, weights))["leaf"]
    assert secret.dtype == dtype
    np.testing.assert_array_equal(np.asarray(secret, float), [1.9375, 2.25])


def test_the_mean_is_that_of_the_plain_sum():
    count, bits = 6, 24
    updates, weights = _updates(count), jnp.array([1.0, 2.0, 0.0, 4.0, 5.0, 60.0])
    seen = _seen(updates, weights)
    secret = jax.jit(federated.secure_mean(bits))(seen)
    plain = federated.mean(seen)
    for name in updates:
        # m roundings of half a step each, and those of float32 (values below 4)
        bound = (count + 1) * 2.0 ** -(bits + 1) + 2**-21
        np.testing.assert_allclose(secret[name], plain[name], rtol=0, atol=bound)
        assert secret[name].shape == plain[name].shape


def test_integers_come_out_exactly():
    updates = {"leaf": jnp.array([[1.0, -2.0], [3.0, 5.0], [-7.0, 1.0], [2.0, 0.0]])}
    weights = jnp.array([1, 1, 2, 4])  # shares 1/8, 1/8, 1/4, 1/2
    secret = federated.secure_mean(16)(_seen(updates, weights))
    expected = [(1 + 3 - 14 + 8) / 8, (-2 + 5 + 2) / 8]
    np.testing.assert_array_equal(secret["leaf"], expected)


@pytest.mark.parametrize("bits", [16, 24])
def test_values_beyond_the_range_are_clipped_and_do_not_wrap(bits):
    limit = 2.0 ** (30 - bits)
    updates = {"leaf": jnp.array([[1e9, -1e9, limit], [3e9, -jnp.inf, limit]])}
    secret = federated.secure_mean(bits)(_seen(updates, [1.0, 2.0]))
    np.testing.assert_allclose(secret["leaf"], [limit, -limit, limit], rtol=1e-6)


def test_clients_of_weight_zero_do_not_count():
    updates = {"leaf": jnp.array([[1.0], [jnp.nan], [jnp.inf]])}
    one = federated.secure_mean()(_seen(updates, [3.0, 0.0, 0.0]))
    np.testing.assert_array_equal(one["leaf"], [1.0])
    none = federated.secure_mean()(_seen(updates, [0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(none["leaf"], [0.0])


def test_dtype_is_that_of_the_params():
    rows = np.array([[1.0, -2.0, 0.5], [2.0, 3.0, 0.5], [3.0, 5.0, -4.0]])
    updates = {"leaf": jnp.asarray(rows, jnp.bfloat16)}
    found = federated.secure_mean()(_seen(updates, [1.0] * 3))["leaf"]
    assert found.dtype == "bfloat16"
    np.testing.assert_array_equal(found.astype(jnp.float32), [2.0, 2.0, -1.0])


def test_bits_are_checked():
    for bits in (0, 31):
        with pytest.raises(ValueError, match=f"bits={bits} in 1 ... 30"):
            federated.secure_mean(bits)
