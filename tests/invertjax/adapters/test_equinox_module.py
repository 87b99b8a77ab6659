"""Equinox: gradients are those of the framework's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax import adapters, clients, losses


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear
    name: str = eqx.field(static=True)

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 3, 3, padding=1, key=one)
        self.norm = eqx.nn.BatchNorm(
            3, axis_name="everyone", momentum=0.5, mode="batch"
        )
        self.dropout = eqx.nn.Dropout(0.5)
        self.dense = eqx.nn.Linear(48, 5, key=two)
        self.name = "net"

    def __call__(self, image, state, key=None):
        features, state = self.norm(self.conv(image), state)
        features = self.dropout(jax.nn.gelu(features), key=key)
        return self.dense(features.ravel()), state


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    return {"image": image, "label": np.array([0, 3, 1, 4])}


def mapped(model, state, images):
    state = jax.tree.unflatten(*reversed(jax.tree.flatten(state)))  # to use it again
    run = jax.vmap(
        lambda image: model(image, state), axis_name="everyone", out_axes=(0, None)
    )
    return run(jnp.moveaxis(jnp.asarray(images), -1, 1))


@pytest.fixture(scope="module")
def model(batch):
    made, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    still = eqx.tree_at(lambda net: net.dropout.inference, made, True)
    return made, eqx.filter_jit(mapped)(still, state, 4 * batch["image"])[1]


@pytest.mark.parametrize("train", (True, False))
def test_gradients_are_the_framework_s_own(batch, model, train):
    made, state = model
    loss_fn, params = adapters.from_equinox(made, state).loss(train=train)
    found = jax.jit(clients.gradient(loss_fn))(params, batch, jax.random.key(0))

    @eqx.filter_jit
    @eqx.filter_grad
    def wanted(net):
        net = eqx.tree_at(lambda net: net.dropout.inference, net, True)
        net = eqx.tree_at(lambda net: net.norm.inference, net, not train)
        logits, _ = mapped(net, state, batch["image"])
        return losses.cross_entropy(logits, batch["label"])

    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted(made)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_modes_and_dropout(batch, model):
    adapted = adapters.from_equinox(*model)

    def value(train, key=None):
        loss_fn, params = adapted.loss(train=train, dropout=key)
        return float(jax.jit(loss_fn)(params, batch))

    keys = map(jax.random.key, (1, 2))
    assert len({value(True), value(False), *(value(True, key) for key in keys)}) == 4
    with pytest.raises(ValueError, match="train=True"):
        adapted.loss()
    with pytest.raises(ValueError, match="make_with_state"):
        adapters.from_equinox(model[0])


def test_stateless_and_channels_last(batch):
    made = eqx.nn.MLP(16, 5, 8, 1, key=jax.random.key(0))

    class Flat(eqx.Module):
        inner: eqx.nn.MLP

        def __call__(self, image):
            assert image.shape == (4, 4, 1)
            return self.inner(image.ravel())

    loss_fn, params = adapters.from_equinox(Flat(made), channels_first=False).loss()
    flat = batch["image"].reshape(4, -1)
    wanted = losses.cross_entropy(jax.vmap(made)(flat), batch["label"])
    np.testing.assert_allclose(loss_fn(params, batch), wanted, rtol=1e-6)
    update = jax.jit(clients.gradient(loss_fn))(params, batch, jax.random.key(0))
    assert np.any(jax.tree.leaves(update)[0])


def test_a_state_that_is_optional_is_not_asked_for(batch):
    layers = [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(16, 5, key=jax.random.key(0))]
    loss_fn, params = adapters.from_equinox(eqx.nn.Sequential(layers)).loss()
    assert np.isfinite(jax.jit(loss_fn)(params, batch))
