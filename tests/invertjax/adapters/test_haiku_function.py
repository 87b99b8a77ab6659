"""Haiku: gradients are those of the framework's own."""

import haiku as hk
import jax
import numpy as np
import pytest

from invertjax import adapters, clients, losses


def net(images, is_training):
    features = hk.Conv2D(3, 3)(images)
    features = hk.BatchNorm(True, True, 0.5)(features, is_training)
    return hk.Linear(5)(jax.nn.gelu(features).reshape(len(images), -1))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    return {"image": image, "label": np.array([0, 3, 1, 4])}


@pytest.mark.parametrize("train", (True, False))
def test_gradients_are_the_framework_s_own(batch, train):
    model = hk.transform_with_state(net)
    init = jax.jit(model.init, static_argnums=2)
    params, state = init(jax.random.key(0), batch["image"], True)
    apply = jax.jit(model.apply, static_argnums=4)
    _, state = apply(params, state, None, 4 * batch["image"], True)
    adapted = adapters.from_haiku(model, params, state)
    loss_fn, same = adapted.loss(train=train)
    found = jax.jit(clients.gradient(loss_fn))(same, batch, jax.random.key(0))

    def loss(params):
        logits, _ = model.apply(params, state, None, batch["image"], train)
        return losses.cross_entropy(logits, batch["label"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        found,
        jax.jit(jax.grad(loss))(params),
    )


def test_without_state_and_with_dropout(batch):
    def small(images):
        key = hk.maybe_next_rng_key()
        images = images if key is None else hk.dropout(key, 0.5, images)
        return hk.Linear(5)(images.reshape(len(images), -1))

    model = hk.transform(small)
    params = model.init(jax.random.key(0), batch["image"])
    adapted = adapters.from_haiku(model, params)

    def value(key):
        loss_fn, params = adapted.loss(dropout=key)
        return float(loss_fn(params, batch))

    wanted = losses.cross_entropy(
        model.apply(params, None, batch["image"]), batch["label"]
    )
    np.testing.assert_allclose(value(None), wanted, rtol=1e-6)
    assert value(jax.random.key(1)) != value(None)


def test_a_function_without_modes_is_refused(batch):
    model = hk.transform_with_state(
        lambda images: hk.BatchNorm(True, True, 0.5)(images, True).mean((1, 2))
    )
    params, state = model.init(jax.random.key(0), batch["image"])
    with pytest.raises(ValueError, match="arguments=lambda"):
        adapters.from_haiku(model, params, state)
