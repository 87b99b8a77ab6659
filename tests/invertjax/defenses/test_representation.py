"""Networks in two parts: features, the last dense layer's input, and that layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from invertjax import layers

SIDES = {"convnet": (9, 9, 2), "mlp": (5, 4, 2)}  # of images, where 8x8x2 will not do
CLASSES = 3


def network(name, **spec):
    """A network, its params and buffers drawn by NumPy, and two images."""
    shape = SIDES.get(name, (8, 8, 2))
    net = models.build(name, image_shape=shape, num_classes=CLASSES, width=4, **spec)
    draw = np.random.default_rng(0).uniform
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(draw(0.1, 1, leaf.shape), jnp.float32),
        jax.eval_shape(net.init, jax.random.key(0)),
    )
    return net, *drawn, jnp.asarray(draw(size=(2, *shape)), jnp.float32)


@pytest.mark.parametrize(
    "name, train", [(name, True) for name in models.NAMES] + [("cnn", False)]
)
def test_the_head_of_the_features_is_the_network(name, train):
    """To the bit, and both move the buffers alike."""
    net, params, buffers, images = network(name, norm="batch")

    @jax.jit
    def both(params, buffers, images):
        features, moved = net.features(params, buffers, images, train)
        parts = net.head(params, features), moved
        return features, parts, net.apply(params, buffers, images, train)

    features, parts, whole = both(params, buffers, images)
    assert features.ndim == 2 and len(features) == 2
    assert whole[0].shape == (2, CLASSES)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize("name", models.NAMES)
def test_the_head_is_the_dense_layer_at_last(name):
    net, params, _, _ = network(name)
    layer = layers.get(params, net.last)
    assert layer.bias is not None and layer.weight.shape[1] == CLASSES
    shape = (2, layer.weight.shape[0])
    features = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    logits = features @ layer.weight + layer.bias[None]
    # One rounding of sums of up to 144 terms of order one.
    np.testing.assert_allclose(net.head(params, features), logits, rtol=0, atol=1e-4)


def test_features_refuse_images_of_another_shape():
    net, params, buffers, images = network("mlp")
    with pytest.raises(ValueError, match="Expected images of shape"):
        net.features(params, buffers, images[:, 1:], False)
