"""Models of the reader's own code: made, called, and refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import own_models, refusals

import models
from experiments.victims import own_model
from invertjax import adapters

SHAPE = (6, 6, 1)
HERE = "support.own_models"


def made(name):
    found = own_model.build(name if ":" in name else f"{HERE}:{name}", SHAPE, 3)
    own_model.check(name, found.net, SHAPE, 3)
    return found


def logits(found, train=False, key=0):
    images = jnp.linspace(0, 1, 72, dtype=jnp.float32).reshape(2, *SHAPE)
    params, buffers = found.net.init(jax.random.key(key))
    return found.net.apply(params, buffers, images, train)[0]


@pytest.mark.parametrize("name", ["Normed", "Linen"])
def test_a_class_makes_new_weights_of_every_key(name):
    found = made(name)
    assert found.fresh and found.batch_norm
    assert not np.array_equal(logits(found), logits(found, key=1))
    np.testing.assert_array_equal(logits(found), logits(found))
    # The modes are two functions; in neither is anything dropped.
    assert not np.array_equal(logits(found), logits(found, train=True))
    np.testing.assert_array_equal(logits(found, True), logits(found, True))


def test_what_a_function_returns_is_taken_as_it_is(monkeypatch):
    found = made("fixed")
    assert not found.fresh and not found.batch_norm
    np.testing.assert_array_equal(logits(found), logits(found, key=1))

    def network(image_shape, num_classes):
        return models.build("mlp", image_shape=image_shape, num_classes=num_classes)

    monkeypatch.setattr(own_models, "network", network, raising=False)
    found = made("network")
    assert found.fresh and found.net.head is not None
    one = own_models.Plain(SHAPE, 3, rngs=nnx.Rngs(0))
    for name, value in {"one": one, "adapted": adapters.from_nnx(one)}.items():
        monkeypatch.setattr(own_models, name, value, raising=False)
        found = made(name)
        assert not found.fresh
        np.testing.assert_array_equal(logits(found), one(_images()))


def _images():
    return jnp.linspace(0, 1, 72, dtype=jnp.float32).reshape(2, *SHAPE)


@pytest.mark.parametrize("name", ["Stateful", "dense"])
def test_equinox(name, monkeypatch):
    eqx = pytest.importorskip("equinox", reason="an extra of the tests")

    class Stateful(eqx.Module):
        norm: eqx.nn.BatchNorm
        dense: eqx.nn.Linear

        def __init__(self, image_shape, num_classes, key):
            self.norm = eqx.nn.BatchNorm(image_shape[2], "batch", mode="batch")
            self.dense = eqx.nn.Linear(36, num_classes, key=key)

        def __call__(self, image, state):
            features, state = self.norm(image, state)
            return self.dense(features.reshape(-1)), state

    def dense(image_shape, num_classes, key):
        layers = [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(36, num_classes, key=key)]
        return eqx.nn.Sequential(layers)

    for one in (Stateful, dense):
        monkeypatch.setattr(own_models, one.__name__, one, raising=False)
    found = made(name)
    assert found.fresh and found.batch_norm == (name == "Stateful")
    inits = [jax.jit(found.net.init)(jax.random.key(i)) for i in range(2)]
    structures = {jax.tree.structure(one) for one in inits}
    assert len(structures) == 1  # else networks could not be stacked
    assert not np.array_equal(logits(found), logits(found, key=1))


def test_haiku_comes_adapted(monkeypatch):
    hk = pytest.importorskip("haiku", reason="an extra of the tests")

    def net(image_shape, num_classes, key):
        def forward(images):
            return hk.Linear(num_classes)(hk.Flatten()(images))

        transformed = hk.transform(forward)
        params = transformed.init(key, jnp.zeros((1, *image_shape)))
        return adapters.from_haiku(transformed, params)

    monkeypatch.setattr(own_models, "net", net, raising=False)
    found = made("net")
    assert found.fresh
    assert not np.array_equal(logits(found), logits(found, key=1))


def test_torch_has_one_network(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs invertjax[torch]")
    pytest.importorskip("torchax", reason="needs invertjax[torch]")

    class Net(torch.nn.Module):
        def __init__(self, image_shape, num_classes):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(image_shape[2])
            self.dense = torch.nn.Linear(36, num_classes)

        def forward(self, images):
            return self.dense(self.norm(images).flatten(1))

    monkeypatch.setattr(own_models, "Net", Net, raising=False)
    found = made("Net")
    assert not found.fresh and found.batch_norm
    np.testing.assert_array_equal(logits(found), logits(found, key=1))


@pytest.mark.parametrize(
    "name, says",
    [
        ("no_such_module:Net", ["no_such_module", "module:name"]),
        ("Missing", [f"--model={HERE}:Missing", "AttributeError"]),
        ("constant", ["is of type int", "a module class, or a function"]),
        ("nothing", ["nothing()", "returns a NoneType", "models.Network"]),
        ("Needy", ["'hidden'", "image_shape, num_classes, rngs, key"]),
        ("Raising", ["fails on images of shape (2, 6, 6, 1)", "no such layer"]),
        ("one_logit", ["(2, 1)", "(2, 3)", "--loss=module:function"]),
    ],
)
def test_what_is_no_model_is_refused(name, says):
    refusals.says("--model=", *says, call=lambda: made(name))
