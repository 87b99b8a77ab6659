"""A client so small that its batch is reconstructed within a second."""

import jax
import jax.numpy as jnp

from invertjax import clients, losses

SHAPE = (6, 6, 1)
CLASSES = 3


def init(key, inputs=36, hidden=8):
    """Params of two dense layers, of variance 1 / fan_in."""
    keys = jax.random.split(key, 4)
    return {
        "first": {
            "kernel": jax.random.normal(keys[0], (inputs, hidden)) / inputs**0.5,
            "bias": 0.1 * jax.random.normal(keys[1], (hidden,)),
        },
        "last": {
            "kernel": jax.random.normal(keys[2], (hidden, CLASSES)) / hidden**0.5,
            "bias": 0.1 * jax.random.normal(keys[3], (CLASSES,)),
        },
    }


def apply(params, images):
    flat = images.reshape(len(images), -1)
    hidden = jnp.tanh(dense(params["first"], flat))
    return dense(params["last"], hidden)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


loss_fn = losses.classification(apply)


def batch(key, size=1, shape=SHAPE):
    """Random images with the labels 2, 0, 1, 2, ..."""
    images = jax.random.uniform(key, (size, *shape))
    return {"image": images, "label": (jnp.arange(size) + 2) % CLASSES}


def soft(batch):
    """The batch with its labels as probabilities, none of them 0 or 1."""
    onehot = jax.nn.one_hot(batch["label"], CLASSES)
    return {**batch, "label": 0.8 * onehot + 0.2 / CLASSES}


def at(params, client=None):
    """The toy client, or another, at these params: `batch -> update`."""
    return clients.at(client or clients.gradient(loss_fn), params, jax.random.key(0))
