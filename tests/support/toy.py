"""A client so small that its batch is reconstructed within a second."""

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import clients, losses

SHAPE = (6, 6, 1)
CLASSES = 3


def init(seed, inputs=36, hidden=8):
    """Params of two dense layers, of variance 1 / fan_in."""
    normal = np.random.default_rng(seed).standard_normal  # nothing to compile

    def layer(inputs, outputs):
        kernel, bias = normal((inputs, outputs)), normal(outputs)
        return {"kernel": floats(kernel / inputs**0.5), "bias": floats(0.1 * bias)}

    return {"first": layer(inputs, hidden), "last": layer(hidden, CLASSES)}


def apply(params, images):
    return _logits(params, _hidden(params, images))


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def _hidden(params, images):
    return jnp.tanh(dense(params["first"], images.reshape(len(images), -1)))


def _logits(params, hidden):
    return dense(params["last"], hidden)


loss_fn = losses.classification(apply)
BLOCKS = (_hidden, _logits)


def batch(seed, size=1, shape=SHAPE, label=2):
    """Random images with the labels `label`, `label + 1`, ... modulo the classes."""
    images = np.random.default_rng(seed).uniform(size=(size, *shape))
    labels = (np.arange(size) + label) % CLASSES
    return {"image": floats(images), "label": jnp.asarray(labels, jnp.int32)}


def floats(array):
    return jnp.asarray(array, jnp.float32)


def soft(batch):
    """The batch with its labels as probabilities, none of them 0 or 1."""
    onehot = jax.nn.one_hot(batch["label"], CLASSES)
    return {**batch, "label": 0.8 * onehot + 0.2 / CLASSES}


def at(params, client=None):
    """The toy client, or another, at these params: `batch -> update`."""
    return clients.at(client or clients.gradient(loss_fn), params, jax.random.key(0))


def relu_hidden(params, images):
    return jnp.maximum(dense(params["first"], images.reshape(len(images), -1)), 0)


RELU_BLOCKS = (relu_hidden, _logits)
relu_loss = losses.classification(lambda p, x: _logits(p, relu_hidden(p, x)))
