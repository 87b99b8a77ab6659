"""Behind convolutions features are exact; their images are found from there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import invertjax
from invertjax import attacks, candidates, clients, driver, exact, losses

SIDE, SIZE, UNITS, CLASSES = 6, 3, 48, 4
SHAPE = (SIZE, SIDE, SIDE, 1)


def _convolution(params, images):
    dimensions = ("NHWC", "HWIO", "NHWC")
    features = jax.lax.conv_general_dilated(
        images - 0.5, params["conv"], (1, 1), "VALID", dimension_numbers=dimensions
    )
    return jax.nn.gelu(features)


def _hidden(params, features):
    flat = features.reshape(len(features), -1)
    return jax.nn.relu(flat @ params["w"] + params["b"][None])


def _head(params, hidden):
    return hidden @ params["v"]


BLOCKS = (_convolution, _hidden, _head)


def _loss(params, batch):
    logits = _head(params, _hidden(params, _convolution(params, batch["image"])))
    return losses.cross_entropy(logits, batch["label"])


def _params(seed):
    normal = np.random.default_rng(seed).standard_normal
    inputs = (SIDE - 2) ** 2 * 6
    drawn = {
        "conv": normal((3, 3, 1, 6)),
        "w": normal((inputs, UNITS)) / inputs**0.5,
        "b": np.zeros(UNITS),
        "v": normal((UNITS, CLASSES)) / UNITS**0.5,
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)


@pytest.fixture(scope="module")
def truth():
    images = np.random.default_rng(1).uniform(size=SHAPE).astype(np.float32)
    return {"image": images, "label": np.array([2, 0, 2])}


@pytest.fixture(scope="module")
def update(truth):
    return jax.jit(jax.grad(_loss))(_params(0), truth)


def test_a_smooth_network_gives_its_images_without_labels(truth, update):
    """60 dB, from labels that are wrong; a row of labels comes with each image."""
    params = _params(0)
    share = clients.at(clients.gradient(_loss, rule="plain"), params, jax.random.key(0))
    candidate = candidates.pixels(SHAPE, jnp.array([1, 1, 0]))
    attack = attacks.peeling(
        share, update, candidate, params=params, blocks=BLOCKS, steps=40
    )
    found = driver.invert(jax.random.key(3), attack)
    errors = np.mean(
        (np.asarray(found.batch["image"])[:, None] - truth["image"][None]) ** 2,
        axis=(2, 3, 4),
    )
    order = errors.argmin(1)
    assert sorted(order) == [0, 1, 2] and np.max(errors.min(1)) < 1e-6
    np.testing.assert_array_equal(found.batch["label"], truth["label"][order])
    assert not np.any(found.certified)  # of images only features are proven


def test_features_are_those_of_the_images(truth, update):
    params = _params(0)
    layer = exact.lowest(BLOCKS, params, SHAPE)
    assert layer.alone and not layer.pixelwise
    found = jax.jit(lambda u: exact.peel(layer, params, u, SIZE))(update)
    assert np.all(found.certified)
    features = layer.enter(params, truth["image"])
    apart = np.abs(np.asarray(found.features)[:, None] - np.asarray(features)[None])
    assert np.max(np.mean(apart, axis=2).min(1)) < 1e-4


def test_statistics_of_the_batch_are_seen():
    def normed(params, images):
        features = _convolution(params, images)
        mean = jnp.mean(features, (0, 1, 2), keepdims=True)
        return features - mean

    layer = exact.lowest((normed, *BLOCKS[1:]), _params(0), SHAPE)
    assert not layer.alone


@pytest.mark.slow
def test_an_audit_takes_it_and_says_how_it_has_the_labels(truth, update):
    report = invertjax.audit(
        jax.random.key(0),
        _loss,
        _params(0),
        update=update,
        shape=SHAPE,
        num_classes=CLASSES,
        attack="peeling",
        steps=2,
        control=False,
    )
    assert report.attack == "peeling"
    assert sorted(np.asarray(report.arrays[0]["label"]).tolist()) == [0, 2, 2]
