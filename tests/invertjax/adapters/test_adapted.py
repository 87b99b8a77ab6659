"""What a loss of an adapted model takes and says."""

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import losses
from invertjax.adapters import Adapted


def adapted(call):
    params = {"weight": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))}
    return Adapted("A", params, {}, call, lambda key: (params, {}))


BATCH = {
    "image": np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1) / 8,
    "label": np.array([0, 2]),
    "age": np.array([[1.0], [2.0]], np.float32),
    "target": np.array([[1, 0, 1], [0, 1, 1]], np.float32),
}


def test_further_entries_and_any_loss():
    def call(params, buffers, inputs, mode):
        image, age = inputs
        return image.reshape(2, -1) @ params["weight"] * age, buffers

    loss_fn, params = adapted(call).loss(
        losses.binary_cross_entropy, inputs=("image", "age"), target="target"
    )
    logits = BATCH["image"].reshape(2, -1) @ params["weight"] * BATCH["age"]
    share = 1 / (1 + np.exp(-logits))
    target = BATCH["target"]
    wanted = -np.mean(target * np.log(share) + (1 - target) * np.log(1 - share))
    np.testing.assert_allclose(loss_fn(params, BATCH), wanted, rtol=1e-5)


def test_auxiliary_outputs_are_left_out():
    def call(params, buffers, inputs, mode):
        logits = inputs[0].reshape(2, -1) @ params["weight"]
        return (logits, {"attention": logits.sum()}), buffers

    loss_fn, params = adapted(call).loss(has_aux=True)
    logits = BATCH["image"].reshape(2, -1) @ params["weight"]
    wanted = losses.cross_entropy(logits, BATCH["label"])
    np.testing.assert_allclose(loss_fn(params, BATCH), wanted, rtol=1e-6)
    assert loss_fn.known == {}


def test_what_is_known_of_the_client_is_said():
    def call(params, buffers, inputs, mode):
        return inputs[0].reshape(2, -1) @ params["weight"], buffers

    model = adapted(call)._replace(batch_norm=True)
    loss_fn, _ = model.loss(train=False, dropout=jax.random.key(0))
    assert set(loss_fn.known) == {"batch_norm", "dropout"}
