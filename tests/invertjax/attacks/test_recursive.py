"""The recursion finds what goes into every block; warm starts are where it ends."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

import models
from invertjax import attacks, candidates, clients, losses
from invertjax.base import Attack, Result, Stop

module = importlib.import_module("invertjax.attacks.recursive")  # not the function

SHAPE, CLASSES = (8, 8, 1), 4
HIDDEN = 12


def blocks(activation=jnp.tanh):
    """A convolution of stride 2 and two dense layers."""

    def first(params, images):
        features = jax.lax.conv_general_dilated(
            images, params["conv"], (2, 2), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return activation(features)

    def second(params, features):
        flat = features.reshape(len(features), -1)
        return activation(toy.dense(params["first"], flat))

    def last(params, features):
        return toy.dense(params["last"], features)

    return first, second, last


def composed(parts):
    def apply(params, features):
        for part in parts:
            features = part(params, features)
        return features

    return losses.classification(apply)


def params(seed, channels=8):
    random = np.random.default_rng(seed)

    def dense(inputs, outputs):
        kernel = random.standard_normal((inputs, outputs)) / inputs**0.5
        return {"kernel": toy.floats(kernel), "bias": jnp.zeros(outputs)}

    conv = random.uniform(-0.5, 0.5, (3, 3, 1, channels))
    first, last = dense(16 * channels, HIDDEN), dense(HIDDEN, CLASSES)
    return {"conv": toy.floats(conv), "first": first, "last": last}


def batch(seed, size):
    images = np.random.default_rng(seed).uniform(size=(size, *SHAPE))
    return {"image": toy.floats(images), "label": jnp.arange(size) % CLASSES}


def attack_on(weights, truth, activation=jnp.tanh, observed=None):
    """The attack, the client and the start, on a network at these weights."""
    parts = blocks(activation)
    client = clients.gradient(composed(parts), matrix_products=False)
    client = clients.at(client, weights, jax.random.key(0))
    observed = client(truth) if observed is None else observed
    start = candidates.pixels(
        truth["image"].shape, truth["label"], init=candidates.nearly_grey
    )
    attack = attacks.recursive(client, observed, start, params=weights, blocks=parts)
    return attack, client, start


@functools.cache
def recursion(activation):
    """`(weights, truth) -> Result`, compiled once for every size of the batch."""

    def run(weights, truth):
        attack, *_ = attack_on(weights, truth, activation)
        return attack.result(attack.init(jax.random.key(0)))

    return jax.jit(run)


def psnr(found, truth):
    """Of the worst image, in dB."""
    errors = jnp.mean(jnp.square(found["image"] - truth["image"]), (1, 2, 3))
    return -10 * np.log10(float(jnp.max(errors)) + 1e-16)


@pytest.mark.parametrize(
    ("activation", "size"), [(jnp.tanh, 1), (jax.nn.gelu, 3)], ids=["tanh", "gelu"]
)
def test_batches_come_back_to_rounding(activation, size):
    for seed in range(3):
        truth = batch(seed, size)
        result = recursion(activation)(params(seed), truth)
        assert psnr(result.batch, truth) > 80
        assert result.loss < 1e-8
        assert result.steps > 3


def test_every_rung_returns_what_went_into_it():
    """The features below the dense layers, too."""
    parts, truth = blocks(), batch(5, 2)
    image = 0.05 * jax.random.normal(jax.random.key(1), truth["image"].shape)
    start = {**truth, "image": 0.5 + image}

    @jax.jit
    def run(weights):
        update = jax.grad(composed(parts))(weights, truth)
        ladder = module._ladder(parts, weights, update, start, losses.cross_entropy)
        assert len(ladder) == 3
        return module._descended(ladder[1:], 30, {"dense": 0})[0]

    expected = parts[0](params(5), truth["image"])
    np.testing.assert_allclose(run(params(5)), expected, atol=1e-3)


def test_a_rung_reads_only_the_params_of_its_blocks():
    parts, weights, truth = blocks(), params(0), batch(0, 1)
    ladder = module._ladder(parts, weights, weights, truth, losses.cross_entropy)
    shapes = [[leaf.shape for leaf in rung.alone.used] for rung in ladder]
    assert shapes[0] == [(3, 3, 1, 8)]
    assert shapes[1] == [(HIDDEN,), (128, HIDDEN)]
    assert shapes[2] == [(CLASSES,), (HIDDEN, CLASSES)]
    assert [len(rung.whole.used) for rung in ladder] == [5, 4, 2]


def test_blocks_without_equations_enough_are_solved_with_the_one_below():
    """Eight images: the head has 52 equations for 96 unknowns, the dense layer 1,644
    (1,644 + 52 with the head) for 1,024."""
    parts, weights, truth = blocks(), params(0), batch(0, 8)
    ladder = module._ladder(parts, weights, weights, truth, losses.cross_entropy)
    assert [rung.guess.shape for rung in ladder] == [(8, *SHAPE), (8, 4, 4, 8)]


def test_what_does_not_fit_is_refused():
    truth, weights = batch(0, 1), params(0)
    _, client, start = attack_on(weights, truth)
    wrong = {**weights, "conv": jnp.zeros((3, 3, 1, 7))}
    with pytest.raises(ValueError, match=r"conv.*\(3, 3, 1, 8\).*\(3, 3, 1, 7\)"):
        attacks.recursive(client, wrong, start, params=weights, blocks=blocks())
    with pytest.raises(ValueError, match=r"blocks=\(\)"):
        attacks.recursive(client, weights, start, params=weights, blocks=())


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn", "convnet5"])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_blocks_of_the_models_compose_to_the_model(name, norm):
    net = models.build(name, image_shape=(16, 16, 3), num_classes=5, norm=norm, width=4)
    weights, buffers = net.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    found = images
    for block in net.blocks:
        found = block(weights, found)
    expected, _ = net.apply(weights, buffers, images, True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_networks_with_shortcuts_have_no_blocks():
    net = models.build("resnet20", image_shape=(16, 16, 3), num_classes=5, width=4)
    assert net.blocks == ()


def test_a_warm_start_is_where_the_other_attack_ends():
    """And least squares on the whole finishes what the recursion has begun."""
    truth = batch(0, 1)

    @jax.jit
    def run(weights):
        attack, client, start = attack_on(weights, truth)
        warm = candidates.warm(start, attack)
        final = attacks.gauss_newton(client, client(truth), warm, steps=2, cheap=0)
        state = final.init(jax.random.key(3))
        return state.z, final.result(final.advance(state, 2)).batch

    first, last = run(params(0))
    assert psnr(first, truth) > 80
    assert psnr(last, truth) > 110


def test_an_update_that_is_not_finite_is_said_to_be():
    truth, weights = batch(0, 1), params(0)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, weights)

    @jax.jit
    def run(weights, broken):
        attack, *_ = attack_on(weights, truth, observed=broken)
        return attack.result(attack.init(jax.random.key(0)))

    result = run(weights, broken)
    assert result.stopped == Stop.NON_FINITE
    assert result.loss == jnp.inf


def test_without_finite_images_there_is_no_warm_start():
    truth = batch(0, 1)
    lost = Result({"image": truth["image"] * jnp.nan}, *[jnp.zeros(())] * 4)
    attack = Attack(lambda key: None, lambda state, n: state, lambda state: lost, 0)
    start = candidates.pixels(truth["image"].shape, truth["label"])
    found = candidates.warm(start, attack).init(jax.random.key(3))
    own = jax.random.split(jax.random.key(3))[0]
    np.testing.assert_array_equal(found["image"], start.init(own)["image"])


def test_a_warm_start_takes_all_steps_of_an_iterative_attack():
    truth = batch(0, 1)
    _, client, start = attack_on(params(0), truth)
    first = attacks.inverting_gradients(client, client(truth), start, steps=5)
    own, other = jax.random.split(jax.random.key(3))
    expected = first.result(first.advance(first.init(other), 5))
    found = candidates.warm(start, first).init(jax.random.key(3))
    np.testing.assert_allclose(found["image"], expected.batch["image"], rtol=1e-6)
    assert not np.allclose(found["image"], start.init(own)["image"], atol=1e-3)


@pytest.mark.parametrize("name", ["recursive", "gauss_newton"])
def test_products_are_taken_in_full_precision(name):
    """Whatever the accelerator's default is."""
    truth = batch(0, 1)
    attack, client, start = attack_on(params(0), truth)
    if name == "gauss_newton":
        attack = attacks.gauss_newton(client, client(truth), start, steps=2)
    state = jax.eval_shape(attack.init, jax.random.key(0))
    programs = [
        jax.make_jaxpr(attack.init)(jax.random.key(0)),
        jax.make_jaxpr(attack.advance)(state, jnp.array(1)),
        jax.make_jaxpr(attack.result)(state),
    ]
    text = "".join(map(str, programs))
    products = text.count("dot_general[") + text.count("conv_general_dilated[")
    assert products > 10
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products
