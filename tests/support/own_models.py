"""Models and losses of a reader's own, as `--model` and `--loss` name them."""

import jax
import jax.numpy as jnp
from flax import linen, nnx

from invertjax import adapters


class Normed(nnx.Module):
    """With a batch norm, and a dropout whose key is no parameter."""

    def __init__(self, image_shape, num_classes, rngs):
        height, width, channels = image_shape
        self.conv = nnx.Conv(channels, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(height * width * 2, num_classes, rngs=rngs)

    def __call__(self, images):
        features = jnp.tanh(self.norm(self.conv(images)))
        return self.dense(self.dropout(features.reshape(len(images), -1)))


class Plain(nnx.Module):
    def __init__(self, image_shape, num_classes, *, rngs, units=5):
        self.hidden = nnx.Linear(_pixels(image_shape), units, rngs=rngs)
        self.dense = nnx.Linear(units, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.dense(jnp.tanh(self.hidden(images.reshape(len(images), -1))))


class Parallel(Plain):
    """Two layers that both see the images, and meet in the logits."""

    def __init__(self, image_shape, num_classes, rngs):
        super().__init__(image_shape, num_classes, rngs=rngs)
        self.other = nnx.Linear(_pixels(image_shape), num_classes, rngs=rngs)

    def __call__(self, images):
        return super().__call__(images) + self.other(images.reshape(len(images), -1))


class Needy(Plain):
    def __init__(self, image_shape, num_classes, hidden, rngs):
        super().__init__(image_shape, num_classes, rngs=rngs, units=hidden)


class Raising(Plain):
    def __call__(self, images):
        raise RuntimeError("no such layer")


class Linen(linen.Module):
    num_classes: int = 3

    @linen.compact
    def __call__(self, images, train):
        features = images.reshape(len(images), -1)
        features = linen.BatchNorm(use_running_average=not train)(features)
        return linen.Dense(self.num_classes)(features)


def stateful(image_shape, num_classes, key):
    """An Equinox module with its state."""
    import equinox as eqx

    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm
        dense: eqx.nn.Linear

        def __init__(self):
            self.norm = eqx.nn.BatchNorm(image_shape[2], "batch", mode="batch")
            self.dense = eqx.nn.Linear(_pixels(image_shape), num_classes, key=key)

        def __call__(self, image, state):
            features, state = self.norm(image, state)
            return self.dense(features.reshape(-1)), state

    return eqx.nn.make_with_state(Net)()


def haiku(image_shape, num_classes, key):
    import haiku as hk

    def forward(images, is_training):
        features = hk.BatchNorm(True, True, 0.9)(images, is_training)
        return hk.Linear(num_classes)(hk.Flatten()(features))

    net = hk.transform_with_state(forward)
    zeros = jnp.zeros((1, *image_shape))
    return adapters.from_haiku(net, *net.init(key, zeros, is_training=True))


def _pixels(image_shape):
    return image_shape[0] * image_shape[1] * image_shape[2]


def one_logit(image_shape, rngs):
    return Plain(image_shape, 1, rngs=rngs)


def fixed(image_shape, num_classes):
    """One network, whatever the key is."""
    model = Plain(image_shape, num_classes, rngs=nnx.Rngs(3))
    return adapters.from_nnx(model)


def nothing():
    return None


constant = 3


def smoothed(logits, labels):
    """Cross-entropy of smoothed labels, which are integers."""
    wanted = 0.8 * jax.nn.one_hot(labels, logits.shape[-1]) + 0.02
    return -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(logits), -1))


def is_first(logits, labels):
    """Binary: whether the class is the first."""
    signs = jnp.where(labels == 0, 1.0, -1.0)
    return jnp.mean(jax.nn.softplus(-signs * logits[:, 0]))


def picked(logits, labels):
    """Cross-entropy of labels that have to be integers."""
    rows = jax.nn.log_softmax(logits)
    return -jnp.mean(rows[jnp.arange(len(rows)), labels])


def of_a_batch(params, batch):
    return jnp.mean(params["kernel"]) * jnp.mean(batch["image"])


def each(logits, labels):
    return logits[:, 0] * labels
