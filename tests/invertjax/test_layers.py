"""Dense layers are found in every kind of tree, in one orientation."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from invertjax import layers


def _params():
    """A convolution, a normalisation and three dense layers, two of equal inputs."""
    return {
        "conv": {"kernel": jnp.zeros((3, 3, 1, 4)), "bias": jnp.zeros(4)},
        "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
        "layers": {
            0: {"kernel": jnp.arange(48.0).reshape(8, 6), "bias": jnp.arange(6.0)},
            1: {"kernel": jnp.zeros((6, 6)), "bias": jnp.zeros(6)},
        },
        "a_head": {"kernel": jnp.zeros((6, 3))},
    }


def test_finds_dense_layers_only():
    found = layers.dense(_params())
    shapes = {layer.path: layer.weight.shape for layer in found}
    assert shapes == {"layers/0": (8, 6), "layers/1": (6, 6), "a_head": (6, 3)}
    assert {layer.path for layer in found if layer.bias is None} == {"a_head"}


def test_get_returns_the_arrays():
    params = _params()
    layer = layers.get(params, "layers/0")
    np.testing.assert_array_equal(layer.weight, params["layers"][0]["kernel"])
    np.testing.assert_array_equal(layer.bias, params["layers"][0]["bias"])


def test_first_and_last_go_by_size_not_by_order():
    params = _params()
    assert layers.first(params, 8).path == "layers/0"
    assert layers.last(params, 3).path == "a_head"
    assert layers.last(params, 6, path="layers/1").path == "layers/1"


def test_the_last_layer_is_the_one_that_no_other_can_follow():
    assert layers.last(_params()).path == "a_head"
    assert layers.last(_params(), path="layers/0").path == "layers/0"
    square = {"kernel": jnp.zeros((6, 6))}
    first = _params()["layers"][0]
    assert layers.last({"only": square}).path == "only"
    assert layers.last({"b": first, "a": square}).path == "a"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: layers.last({**p, "b_head": p["a_head"]}), "'a_head'.*'b_head'"),
        (lambda p: layers.last({"a": p["layers"][1], "b": p["layers"][1]}), "'a'.*'b'"),
        (lambda p: layers.last({}), r"path=.* the dense layers \[\] is the last"),
        (lambda p: layers.first(p, 6), r"'layers/1' \(6, 6\).*choose one with path="),
        (lambda p: layers.last(p, 6), r"'layers/0' \(8, 6\), 'layers/1'.*path="),
        (lambda p: layers.last(p, 10), r"num_classes=10 .*'a_head' \(6, 3\)"),
        (lambda p: layers.last(p, 10, path="a_head"), "num_classes=10"),
        (lambda p: layers.get(p, "conv"), "path='conv' to be a dense layer.*'a_head'"),
        (lambda p: layers.get(p, "nowhere"), "path='nowhere'"),
        (lambda p: layers.first({}, 3), r"in_size=3 .*\[\]"),
    ],
)
def test_asks_when_there_is_no_single_answer(call, message):
    with pytest.raises(ValueError, match=message):
        call(_params())


class _Net(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(5, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 4, rngs=rngs)


def _from_nnx():
    graph, params, rest = nnx.split(_Net(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, x):
        net = nnx.merge(graph, params, rest, copy=True)
        return net.head(net.layers[0](x))

    return params, apply, "layers/0", "head"


def _from_linen():
    net = nn.Sequential([nn.Dense(4), nn.Dense(4)])
    params = net.init(jax.random.key(0), jnp.zeros((1, 5)))
    return params, net.apply, "params/layers_0", "params/layers_1"


def _from_equinox():
    # A key as plain numbers: JAX 0.7's check for reused keys trips over equinox.
    key = jax.random.PRNGKey(0)
    net = eqx.nn.MLP(5, 4, 4, 1, activation=lambda x: x, key=key)
    params, static = eqx.partition(net, eqx.is_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return params, apply, "layers/0", "layers/1"


@pytest.mark.parametrize("make", [_from_nnx, _from_linen, _from_equinox])
def test_weights_of_every_library_map_inputs_to_outputs(make):
    params, apply, first, last = make()
    assert {layer.path for layer in layers.dense(params)} == {first, last}
    one, two = layers.get(params, first), layers.get(params, last)
    x = jax.random.normal(jax.random.key(1), (3, 5))
    bias = [jnp.broadcast_to(layer.bias, (3, 4)) for layer in (one, two)]
    by_hand = (x @ one.weight + bias[0]) @ two.weight + bias[1]
    # the second is square: only its name tells the orientation. float32 products
    np.testing.assert_allclose(by_hand, apply(params, x), atol=1e-5)


def test_reads_an_update_of_an_equinox_module_under_jit():
    params, apply, first, _ = _from_equinox()
    x = jnp.ones((1, 5))
    grads = jax.grad(lambda params: apply(params, x).sum())(params)
    layer = jax.jit(lambda grads: layers.first(grads, 5, path=first)[1:])(grads)
    # dL/dW = x (dL/dc)^T with x = 1: every row is the bias gradient
    np.testing.assert_allclose(layer[0], jnp.tile(layer[1], (5, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "names, shape, transposed, expected",
    [
        (("w", "b"), (2, 3), None, False),
        (("w", "b"), (3, 2), None, True),
        (("w", "b"), (3, 3), False, False),
        (("w", "b"), (3, 3), True, True),
        (("weight", "bias"), (3, 3), None, True),
        (("kernel", "bias"), (3, 3), None, False),
        (("weight", "bias"), (2, 3), None, False),  # the bias outweighs the name
    ],
)
def test_orientation(names, shape, transposed, expected):
    weight = jnp.arange(float(shape[0] * shape[1])).reshape(shape)
    params = {"layer": dict(zip(names, (weight, jnp.zeros(3)), strict=True))}
    (layer,) = layers.dense(params, transposed=transposed)
    np.testing.assert_array_equal(layer.weight, weight.T if expected else weight)


def test_orientation_of_a_square_unnamed_weight_is_asked_for():
    params = {"layer": {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)}}
    with pytest.raises(ValueError, match="path='layer', name='w'; say transposed=True"):
        layers.last(params, 3)
    assert layers.last(params, 3, transposed=False).path == "layer"


def test_lists_and_tuples_and_the_root():
    pairs = [(jnp.zeros((4, 3)), jnp.zeros(3)), (jnp.zeros((3, 2)), jnp.zeros(2))]
    assert [layer.path for layer in layers.dense(pairs)] == ["0", "1"]
    (layer,) = layers.dense({"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)})
    assert layer.path == ""
    assert layers.get({"kernel": jnp.zeros((4, 3))}, "").bias is None


def test_leaves_that_are_no_dense_layer_are_skipped():
    params = {
        "cell": {"w_i": jnp.zeros((4, 3)), "w_h": jnp.zeros((3, 3)), "b": jnp.zeros(3)},
        "table": {"embedding": jnp.zeros((7, 3))},
        "activation": jax.nn.relu,
        "nothing": None,
    }
    assert layers.dense(params) == []
