"""Flax NNX: gradients are those of the framework's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import invertjax
from invertjax import adapters, clients, losses


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(3 * 4 * 4, 5, rngs=rngs)

    def __call__(self, images):
        features = jax.nn.gelu(self.norm(self.conv(images)))
        return self.dense(self.dropout(features.reshape(len(images), -1)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    return {"image": image, "label": np.array([0, 3, 1, 4])}


def trained(batch):
    """A module whose running statistics are not those that it starts with."""
    model = Net(nnx.Rngs(0))
    model.train()
    model(jnp.asarray(4 * batch["image"]))
    return model


@pytest.mark.parametrize("train", (True, False))
def test_gradients_are_the_framework_s_own(batch, train):
    model = trained(batch)
    model.set_attributes(use_running_average=not train, deterministic=True)
    loss_fn, params = adapters.from_nnx(trained(batch)).loss(train=train)
    found = jax.jit(clients.gradient(loss_fn))(params, batch, jax.random.key(0))

    @nnx.jit
    @nnx.grad
    def wanted_of(model):
        return losses.cross_entropy(model(batch["image"]), batch["label"])

    wanted = wanted_of(model)
    for a, b in zip(
        jax.tree.leaves(found),
        jax.tree.leaves(nnx.to_pure_dict(nnx.state(wanted, nnx.Param))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_modes_differ_and_are_asked_for(batch):
    adapted = adapters.from_nnx(trained(batch))
    (train, params), (eval_, _) = adapted.loss(train=True), adapted.loss(train=False)
    values = [jax.jit(loss)(params, batch) for loss in (train, eval_)]
    assert abs(values[0] - values[1]) > 1e-3
    assert train.known["batch_norm"].startswith("train")
    assert eval_.known["batch_norm"].startswith("eval")
    with pytest.raises(ValueError, match="train=True"):
        adapted.loss()


def test_apply_moves_the_statistics_of_the_batch_and_leaves_the_module_alone(batch):
    model = trained(batch)
    before = np.asarray(model.norm.mean[...])
    adapted = adapters.from_nnx(model)
    images = jnp.asarray(batch["image"])
    _, after = jax.jit(adapted.apply, static_argnums=3)(
        adapted.params, adapted.buffers, images, True
    )
    mean = model.conv(images).mean((0, 1, 2))
    np.testing.assert_allclose(after["norm"]["mean"], (before + mean) / 2, rtol=1e-5)
    np.testing.assert_array_equal(model.norm.mean[...], before)
    _, same = adapted.apply(adapted.params, adapted.buffers, images, False)
    np.testing.assert_array_equal(same["norm"]["mean"], before)


def test_dropout_is_off_or_that_of_a_key(batch):
    adapted = adapters.from_nnx(trained(batch))

    def value(key):
        loss_fn, params = adapted.loss(train=False, dropout=key)
        return float(jax.jit(loss_fn)(params, batch))

    off, one = value(None), value(jax.random.key(1))
    assert off == value(None) and one == value(jax.random.key(1))
    assert len({off, one, value(jax.random.key(2))}) == 3


def test_a_class_makes_fresh_weights():
    adapted = adapters.from_nnx(Net)
    one, other = (adapted.init(jax.random.key(i))[0] for i in (1, 2))
    assert adapted.fresh
    assert np.any(one["conv"]["kernel"] != other["conv"]["kernel"])
    instance = adapters.from_nnx(Net(nnx.Rngs(0)))
    same = instance.init(jax.random.key(1))[0]
    assert not instance.fresh
    np.testing.assert_array_equal(
        same["conv"]["kernel"], instance.params["conv"]["kernel"]
    )


def test_an_audit_says_in_which_mode_batch_norms_were(batch):
    loss_fn, params = adapters.from_nnx(trained(batch)).loss(train=True)
    one = jax.tree.map(lambda leaf: leaf[None], batch)
    report = invertjax.audit(
        jax.random.key(0), loss_fn, params, batches=one, steps=2, control=False,
        attack="inverting_gradients", num_classes=5,
    )  # fmt: skip
    assert report.threat_model["batch_norm"] == adapters.adapted.TRAIN
