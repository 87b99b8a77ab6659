"""Means of several clients are peeled as one batch, each image with its weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import decoys

from invertjax import clients, exact, federated
from invertjax.auditing import Target, Threat, closed_forms
from invertjax.defenses.protection import Parts
from invertjax.exact import precision

COUNTS = (4.0, 1.0, 1.0)  # examples of three clients, of two images each in a round


def mean(params, truth, aggregator=federated.mean):
    """What the server sees of clients of these counts."""
    client = clients.gradient(decoys.loss_fn)
    key = jax.random.key(0)
    members = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), truth)
    each = jax.vmap(lambda batch: client(params, batch, key))(members)
    counts = jnp.asarray(COUNTS)
    return aggregator(federated.Seen(params, params, each, counts, jnp.int32(0), key))


def told():
    shape = (6, *decoys.SHAPE)
    target = Target(decoys.loss_fn, shape, Parts(4), members=COUNTS)
    return closed_forms.told(target, Threat())["weights"]


@functools.cache
def peeling():
    layer = exact.lowest(decoys.BLOCKS, decoys.init(0), (6, *decoys.SHAPE))
    return jax.jit(lambda p, u: exact.peel(layer, p, u, 6, weights=told()))


def matched(found, truth):
    """Returns which image each row is, and the largest mean squared error."""
    images = np.asarray(truth["image"]).reshape(len(truth["image"]), -1)
    rows = np.asarray(found.features)[np.asarray(found.labels) >= 0]
    errors = np.mean((rows[:, None] - images[None]) ** 2, axis=-1)
    return errors.argmin(1), errors.min(1).max()


@pytest.mark.parametrize("secure", [False, True])
def test_images_of_a_mean_come_with_the_weights_of_their_clients(secure):
    """Also where secure aggregation has rounded every client to fixed point."""
    aggregator = federated.secure_mean() if secure else federated.mean
    for seed in range(3):
        params, truth = decoys.init(seed), decoys.batch(seed)
        found = peeling()(params, mean(params, truth, aggregator))
        order, error = matched(found, truth)
        assert np.all(found.certified) and sorted(order) == list(range(6))
        assert error < 1e-6  # 60 dB
        np.testing.assert_array_equal(found.labels, truth["label"][order])
        own = np.repeat(np.array(COUNTS) / 6 / 2, 2)
        np.testing.assert_allclose(found.weights, own[order], rtol=1e-5)


def test_equal_images_of_two_clients_are_one_of_both_their_weights():
    params, truth = decoys.init(1), decoys.batch(1)
    twice = jax.tree.map(lambda leaf: leaf.at[2].set(leaf[0]), truth)
    found = peeling()(params, mean(params, twice))
    order, error = matched(found, twice)
    assert sum(found.certified) == 5 == len(set(order)) and error < 1e-8
    # Weight 4/12 of the first client's, and 1/12 of the second's.
    assert found.weights[list(order).index(0)] == pytest.approx(5 / 12, rel=1e-5)


def test_equal_images_of_a_batch_are_one_of_twice_the_weight():
    params, truth = decoys.init(1), decoys.batch(1)
    twice = jax.tree.map(lambda leaf: leaf.at[2].set(leaf[0]), truth)
    found = decoys.peeling()(params, decoys.gradient(params, twice))
    assert sum(found.certified) == 5 and found.complete
    np.testing.assert_allclose(np.sum(found.weights), 1, rtol=1e-5)


def test_weights_to_try_are_those_of_the_clients_and_of_pairs():
    assert told() == pytest.approx([1 / 12, 4 / 12, 2 / 12, 5 / 12, 8 / 12])


def test_fixed_point_is_found_out():
    """Steps of 2^-10, each of three members off by up to half a step."""
    numbers = jnp.asarray(np.random.default_rng(0).standard_normal((3, 100)))
    rounded = jnp.round(numbers * 2**10) / 2**10
    noise = float(precision.of({"w": rounded.astype(jnp.float32)}, members=3).noise)
    assert noise == pytest.approx(2**-10 * (3 / 12) ** 0.5, rel=1e-6)
    whole = float(precision.of({"w": numbers.astype(jnp.float32)}, members=3).noise)
    assert whole < 1e-3 * noise
