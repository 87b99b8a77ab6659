"""Flax Linen: gradients are those of the framework's own."""

import jax
import numpy as np
import pytest
from flax import linen

from invertjax import adapters, clients, losses


class Net(linen.Module):
    @linen.compact
    def __call__(self, images, train: bool, deterministic: bool = True):
        features = linen.Conv(3, (3, 3))(images)
        features = linen.BatchNorm(not train, momentum=0.5)(features)
        features = linen.Dropout(0.5)(jax.nn.gelu(features), deterministic)
        return linen.Dense(5)(features.reshape(len(images), -1))


class Own(Net):
    @linen.compact
    def __call__(self, images, phase):
        return linen.BatchNorm(phase == "test")(images).mean((1, 2))


class OneSwitch(Net):
    @linen.compact
    def __call__(self, images, train):
        return linen.Dropout(0.5, deterministic=not train)(images).mean((1, 2))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    return {"image": image, "label": np.array([0, 3, 1, 4])}


@pytest.fixture(scope="module")
def variables(batch):
    init = jax.jit(Net().init, static_argnames="train")
    start = init(jax.random.key(0), batch["image"], train=False)

    @jax.jit
    def moved_by(images):
        return Net().apply(start, images, train=True, mutable=["batch_stats"])[1]

    moved = moved_by(4 * batch["image"])
    return {**start, **moved}


@pytest.mark.parametrize("train", (True, False))
def test_gradients_are_the_framework_s_own(batch, variables, train):
    loss_fn, params = adapters.from_linen(Net(), variables).loss(train=train)
    found = jax.jit(clients.gradient(loss_fn))(params, batch, jax.random.key(0))

    def loss(params):
        mutable = {"mutable": ["batch_stats"]} if train else {}
        whole = {**variables, "params": params}
        logits = Net().apply(whole, batch["image"], train=train, **mutable)
        logits = logits[0] if train else logits
        return losses.cross_entropy(logits, batch["label"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        found,
        jax.jit(jax.grad(loss))(variables["params"]),
    )


def test_statistics_are_buffers_and_move_in_training(batch, variables):
    adapted = adapters.from_linen(Net(), variables)
    assert "batch_stats" in adapted.buffers and "batch_stats" not in adapted.params
    before = variables["batch_stats"]["BatchNorm_0"]["mean"]
    for train in (True, False):
        _, after = jax.jit(adapted.apply, static_argnums=3)(
            adapted.params, adapted.buffers, batch["image"], train
        )
        moved = np.any(after["batch_stats"]["BatchNorm_0"]["mean"] != before)
        assert moved == train
    with pytest.raises(ValueError, match="train=True"):
        adapted.loss()


def test_dropout_follows_its_key(batch, variables):
    adapted = adapters.from_linen(Net(), variables)

    def value(key):
        loss_fn, params = adapted.loss(train=True, dropout=key)
        return float(jax.jit(loss_fn)(params, batch))

    assert len({value(None), value(jax.random.key(1)), value(jax.random.key(2))}) == 3


def test_a_module_that_drops_units_in_training_says_what_it_needs(batch):
    adapted = adapters.from_linen(OneSwitch(), {"params": {}})
    loss_fn, params = adapted.loss(train=True)
    with pytest.raises(ValueError, match="dropout="):
        loss_fn(params, batch)


def test_names_of_its_own(batch):
    variables = Own().init(jax.random.key(0), batch["image"], phase="test")
    with pytest.raises(ValueError, match=r"images, phase\).*arguments=lambda"):
        adapters.from_linen(Own(), variables)
    adapted = adapters.from_linen(
        Own(),
        variables,
        arguments=lambda train: {"phase": "train" if train else "test"},
    )
    values = [
        loss(adapted.params, {**batch, "label": np.zeros(4, int)})
        for loss, _ in (
            adapted.loss(lambda out, _: out.std(), train=train)
            for train in (True, False)
        )
    ]
    assert abs(values[0] - values[1]) > 0.1
    with pytest.raises(ValueError, match="params"):
        adapters.from_linen(Own(), {"batch_stats": {}})
