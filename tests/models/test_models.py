"""Networks: sizes, initialisation, normalisation, and that they are pure functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.signal import correlate2d
from scipy.special import softmax

import models
from invertjax.rewrites.convolutions import as_matrix_products
from models import layers

# Two roundings of float32 sums of a few hundred terms of order one.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

CIFAR = {"image_shape": (32, 32, 3), "num_classes": 10}
MNIST = {"image_shape": (28, 28, 1), "num_classes": 10}
TINY = {"image_shape": (9, 9, 3), "num_classes": 3, "width": 2}
# Even sides, where padding as "SAME" is lopsided; no normalisation.
EVEN = TINY | {"image_shape": (8, 6, 3), "mean": (0,) * 3, "std": (1,) * 3}
STATS = ("mean", "var")
CHAINS = tuple(name for name in models.NAMES if "resnet" not in name)


CIFAR_MEAN = np.array([0.4914, 0.4822, 0.4465])
CIFAR_STD = np.array([0.2470, 0.2435, 0.2616])


def path(key_path):
    return "/".join(str(key.key) for key in key_path)


def flat(tree):
    return {path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(name, **spec):
    """Shapes of the params, of the buffers and of the logits of two images."""
    net = models.build(name, **spec)
    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *spec["image_shape"]), jnp.float32)
    apply = functools.partial(net.apply, train=True)
    logits, new_buffers = jax.eval_shape(apply, params, buffers, images)
    assert jax.tree.map(jnp.shape, new_buffers) == jax.tree.map(jnp.shape, buffers)
    return params, buffers, logits.shape


def start(name, seed=0, **spec):
    """A network with its `apply` compiled, params, buffers and two images.

    NumPy draws them, because compiling JAX's generator takes longer than these tests.
    """
    net = models.build(name, **spec)
    net = net._replace(apply=jax.jit(net.apply, static_argnames="train"))
    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype("f")  # noqa: E731
    params = jax.tree.map(lambda leaf: draw(leaf) - 1, params)
    images = rng.uniform(size=(2, *spec["image_shape"])).astype("f")
    return net, params, jax.tree.map(draw, buffers), images


def conv(kernel, inputs, outputs, bias=1):
    return kernel**2 * inputs * outputs + bias * outputs


def stage(inputs, outputs, blocks):
    """Parameters of a stage of basic blocks; two values a channel in every norm."""
    plain = conv(3, outputs, outputs, 0) + 2 * outputs
    first = conv(3, inputs, outputs, 0) + 2 * outputs
    shortcut = conv(1, inputs, outputs, 0) + 2 * outputs if inputs != outputs else 0
    return first + plain + shortcut + (blocks - 1) * 2 * plain


CONVNET = (
    conv(3, 3, 64)
    + conv(3, 64, 128)
    + conv(3, 128, 128)
    + conv(3, 128, 256)
    + 4 * conv(3, 256, 256)
    + 2 * (64 + 2 * 128 + 5 * 256)
    + (3 * 3 * 256 + 1) * 10
)
CONVNET5 = conv(3, 3, 8) + conv(3, 8, 16) + conv(3, 16, 16) + conv(3, 16, 32)
RESNET20 = conv(3, 3, 16, 0) + 32 + stage(16, 16, 3) + stage(16, 32, 3)
RESNET18 = stage(64, 64, 2) + stage(64, 128, 2) + stage(128, 256, 2)
IMAGENET = {"image_shape": (224, 224, 3), "num_classes": 1000}


@pytest.mark.parametrize(
    ("name", "spec", "count"),
    [
        ("mlp", CIFAR, 3073 * 128 + 129 * 10),
        ("mlp", MNIST | {"width": 7}, 785 * 7 + 8 * 10),
        ("cnn", CIFAR, conv(3, 3, 32) + conv(3, 32, 64) + 4097 * 100 + 101 * 10),
        ("cnn", MNIST, conv(3, 1, 32) + conv(3, 32, 64) + 3137 * 100 + 101 * 10),
        (
            "cnn",
            CIFAR | {"hidden": 7},
            conv(3, 3, 32) + conv(3, 32, 64) + 4097 * 7 + 80,
        ),
        ("lenet", CIFAR, conv(5, 3, 12) + 2 * conv(5, 12, 12) + 769 * 10),
        ("lenet", MNIST, conv(5, 1, 12) + 2 * conv(5, 12, 12) + 589 * 10),
        ("convnet5", CIFAR | {"width": 8}, CONVNET5 + conv(3, 32, 32) + 33 * 10),
        ("convnet", CIFAR, CONVNET),
        ("resnet20", CIFAR, RESNET20 + stage(32, 64, 3) + 65 * 10),
        (
            "resnet20",
            CIFAR | {"hidden": 9},
            RESNET20 + stage(32, 64, 3) + 65 * 9 + 10 * 10,
        ),
        # The published counts of this network with a 3x3 and with a 7x7 stem.
        ("resnet18", CIFAR, 11_173_962),
        ("resnet18", IMAGENET, 11_689_512),
        (
            "resnet18",
            CIFAR | {"stem": "imagenet"},
            conv(7, 3, 64, 0) + 128 + RESNET18 + stage(256, 512, 2) + 513 * 10,
        ),
    ],
)
def test_parameters_are_counted_by_hand(name, spec, count):
    params, _, logits = shapes(name, **spec)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert logits == (2, spec["num_classes"])


def test_convnet_has_the_published_size():
    assert CONVNET == 2_904_970


@pytest.mark.parametrize("name", models.NAMES)
def test_last_layer_is_dense_with_bias(name):
    params, _, _ = shapes(name, **MNIST)
    chain = name in CHAINS
    last = params["layers"][max(params["layers"])] if chain else params["head"]
    assert last["kernel"].ndim == 2 and last["kernel"].shape[1] == 10
    assert last["bias"].shape == (10,)


def test_paths_of_parameters():
    params, buffers, _ = shapes("mlp", **MNIST)
    expected = ["layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"]
    assert list(flat(params)) == expected
    assert buffers == {}
    params, buffers, _ = shapes("lenet", norm="batch", **MNIST)
    assert {"norms/2/scale", "layers/3/kernel"} <= set(flat(params))
    assert list(flat(buffers)) == [f"norms/{i}/{s}" for i in range(3) for s in STATS]
    params, _, _ = shapes("resnet18", **MNIST)
    assert {"stem/kernel", "blocks/2/layers/2/kernel", "head/bias"} <= set(flat(params))
    assert "stem/bias" not in flat(params)
    assert "stem/bias" in flat(shapes("resnet18", norm="none", **MNIST)[0])


def test_default_init_has_variance_one_over_fan_in():
    net = models.build("cnn", num_classes=9, image_shape=(9, 9, 3))
    params, _ = jax.jit(net.init)(jax.random.key(0))
    for leaf_path, leaf in flat(params).items():
        if leaf_path.endswith("bias"):
            assert not leaf.any()
            continue
        scale = np.std(leaf) * np.prod(leaf.shape[:-1]) ** 0.5
        # Five standard errors of the standard deviation of `size` normal values.
        assert abs(scale - 1) < 5 / (2 * leaf.size) ** 0.5


def test_wide_init_is_uniform_and_spares_norms():
    net = models.build("lenet", norm="batch", **MNIST)
    keys = jax.random.split(jax.random.key(0), 3)
    params, buffers = jax.jit(jax.vmap(net.init))(keys)
    drawn = np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(params["layers"])]
    )
    assert drawn.min() >= -0.5 and drawn.max() < 0.5
    # Five standard errors: 12^-1/2 n^-1/2 of the mean, 180^-1/2 n^-1/2 of the variance.
    assert abs(drawn.mean()) < 5 * (12 * drawn.size) ** -0.5
    assert abs(drawn.var() - 1 / 12) < 5 * (180 * drawn.size) ** -0.5
    assert all(np.std(layer["bias"]) > 0.1 for layer in params["layers"].values())
    assert (params["norms"][0]["scale"] == 1).all()
    assert not params["norms"][0]["bias"].any()
    assert (buffers["norms"][2]["var"] == 1).all()
    assert not buffers["norms"][2]["mean"].any()
    # Under vmap, networks differ from each other, and layers of one shape within one.
    first, second = np.asarray(params["layers"][1]["kernel"][:2])
    assert (first != second).mean() > 0.99
    assert (first != np.asarray(params["layers"][2]["kernel"][0])).mean() > 0.99


def test_mlp_is_two_matrix_products():
    net, params, buffers, images = start("mlp", **TINY)
    first, last = params["layers"][0], params["layers"][1]
    pixels = (images - CIFAR_MEAN) / CIFAR_STD
    hidden = np.maximum(pixels.reshape(2, -1) @ first["kernel"] + first["bias"], 0)
    logits, _ = net.apply(params, buffers, images, train=True)
    np.testing.assert_allclose(logits, hidden @ last["kernel"] + last["bias"], **CLOSE)


def numpy_convolution(features, layer, stride):
    """Cross-correlation with padding `k // 2`, channel by channel."""
    kernel, pad = np.asarray(layer["kernel"]), layer["kernel"].shape[0] // 2
    padded = np.pad(features, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    outputs = [
        [
            sum(
                correlate2d(image[..., i], kernel[..., i, o], "valid")
                for i in range(kernel.shape[2])
            )
            for o in range(kernel.shape[3])
        ]
        for image in padded
    ]
    result = np.moveaxis(np.array(outputs), 1, -1)[:, ::stride, ::stride]
    return result + np.asarray(layer["bias"])


def test_lenet_is_three_convolutions_and_a_matrix_product():
    net, params, buffers, images = start("lenet", **EVEN)
    features = images
    for i, stride in enumerate((2, 2, 1)):
        features = numpy_convolution(features, params["layers"][i], stride)
        features = 1 / (1 + np.exp(-features))
    last = params["layers"][3]
    expected = features.reshape(2, -1) @ last["kernel"] + last["bias"]
    logits, _ = net.apply(params, buffers, images, train=False)
    np.testing.assert_allclose(logits, expected, **CLOSE)


def test_cnn_pools_means_after_activations():
    net, params, buffers, images = start(
        "cnn", activation="tanh", mean=(0,) * 3, std=(1,) * 3, **TINY
    )
    features = images
    for i in range(2):
        features = np.tanh(numpy_convolution(features, params["layers"][i], 1))
        features = naive_pool(features, 2, np.mean)
    first, last = params["layers"][2], params["layers"][3]
    hidden = np.tanh(features.reshape(2, -1) @ first["kernel"] + first["bias"])
    logits, _ = net.apply(params, buffers, images, train=False)
    np.testing.assert_allclose(logits, hidden @ last["kernel"] + last["bias"], **CLOSE)


def test_resnet_adds_its_shortcuts():
    net, params, buffers, images = start("resnet20", norm="none", **EVEN)
    features = np.maximum(numpy_convolution(images, params["stem"], 1), 0)
    for i in range(9):
        block, stride = params["blocks"][i]["layers"], 2 if i in (3, 6) else 1
        hidden = np.maximum(numpy_convolution(features, block[0], stride), 0)
        residual = numpy_convolution(hidden, block[1], 1)
        assert (2 in block) == (stride == 2)
        if stride == 2:
            features = numpy_convolution(features, block[2], 2)
        features = np.maximum(residual + features, 0)
    head = params["head"]
    expected = features.mean((1, 2)) @ head["kernel"] + head["bias"]
    logits, _ = net.apply(params, buffers, images, train=True)
    np.testing.assert_allclose(logits, expected, **CLOSE)


def naive_pool(features, window, reduce):
    height, width = (n // window for n in features.shape[1:3])
    tile = lambda i: slice(i * window, (i + 1) * window)  # noqa: E731
    rows = [
        [reduce(features[:, tile(i), tile(j)], axis=(1, 2)) for j in range(width)]
        for i in range(height)
    ]
    return np.moveaxis(np.array(rows), 2, 0)


@pytest.mark.parametrize(
    ("reduce", "naive"), [(layers.mean, np.mean), (layers.maximum, np.max)]
)
def test_pooling_drops_what_is_left_over(reduce, naive):
    features = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype("f")
    expected = naive_pool(features, 3, naive)
    result = layers.pool(features, 3, reduce)
    assert result.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(7, 7), (6, 1)])
def test_max_pool_3x3_equals_a_windowed_reduction(shape):
    features = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("f")
    expected = nnx.max_pool(features, (3, 3), (2, 2), [(1, 1), (1, 1)])
    np.testing.assert_array_equal(layers.max_pool_3x3(features), expected)


def test_max_pooling_loses_no_gradient_to_rounding():
    """Two programs of one function round the input of a pooling in two ways."""
    net, params, buffers, images = start(
        "convnet", image_shape=(32, 32, 3), num_classes=10, width=32
    )

    def norms(rewrite):
        def loss(params, images):
            return net.apply(params, buffers, images, True)[0][:, 0].sum()

        gradient = jax.jit(jax.grad(rewrite(loss)))(params, images)["layers"]
        return [optax.tree.norm(gradient[i]["kernel"]) for i in range(8)]

    plain, products = norms(lambda loss: loss), norms(as_matrix_products)
    np.testing.assert_allclose(plain, products, rtol=1e-3)


def test_normalisation_comes_first():
    grey = TINY | {"image_shape": (9, 9, 1)}
    net, params, buffers, images = start("lenet", **grey)
    plain, *_ = start("lenet", mean=(0,), std=(1,), **grey)
    grey_image = np.full_like(images, 0.5)
    for image, normalised in [
        (grey_image, np.zeros_like(images)),
        (images, (images - 0.5) / 0.25),
    ]:
        np.testing.assert_allclose(
            net.apply(params, buffers, image, train=False)[0],
            plain.apply(params, buffers, normalised, train=False)[0],
            **CLOSE,
        )


@pytest.mark.parametrize(
    ("activation", "at_one", "at_minus_one"),
    [
        ("sigmoid", 0.7310586, 0.2689414),
        ("tanh", 0.7615942, -0.7615942),
        ("relu", 1, 0),
        ("gelu", 0.8413447, -0.1586553),  # The normal distribution function at 1, -1.
        ("silu", 0.7310586, -0.2689414),
        ("leaky", 1, -0.01),
    ],
)
def test_activations(activation, at_one, at_minus_one):
    values = layers.ACTIVATIONS[activation](jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(values, [at_one, at_minus_one], rtol=1e-6)
    net, params, buffers, images = start("mlp", activation=activation, **TINY)
    params["layers"][0] = {"kernel": np.zeros((243, 2)), "bias": np.array([1.0, -1.0])}
    params["layers"][1] = {"kernel": np.eye(2, 3), "bias": np.zeros(3)}
    params = jax.tree.map(lambda leaf: leaf.astype("f"), params)
    logits, _ = net.apply(params, buffers, images, train=True)
    np.testing.assert_allclose(logits[1], [at_one, at_minus_one, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("norm", "channels", "count"),
    [("layer", 12, 1), ("group", 12, 1), ("group", 24, 2), ("group", 256, 32)],
)
def test_group_and_layer_norm_standardise_each_example(norm, channels, count):
    layer = layers.NORMS[norm](channels, nnx.Rngs(0))
    features = np.random.default_rng(0).uniform(2, 8, (2, 4, 4, channels)).astype("f")
    result = np.asarray(layer(features)).reshape(2, 16, count, -1)
    np.testing.assert_allclose(result.mean((1, 3)), np.zeros((2, count)), atol=1e-5)
    np.testing.assert_allclose(result.var((1, 3)), np.ones((2, count)), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5, 10, 12, 16, 18, 64, 100, 160, 512])
def test_groups_divide_the_channels(channels):
    count = layers.groups(channels)
    assert channels % count == 0 and count <= 32
    assert channels // count >= min(4, channels)


def test_batch_norm_equals_flax_in_values_and_gradients():
    ours, flax = layers.BatchNorm(3), nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    for layer in (ours, flax):
        layer.scale[...] = jnp.array([0.5, 1.0, 2.0])
        layer.bias[...] = jnp.array([1.0, -1.0, 0.0])
    features = np.random.default_rng(0).normal(2, 1, (4, 5, 5, 3)).astype("f")

    def value(layer):
        return lambda x: jnp.sum(jnp.sin(nnx.clone(layer)(x)))

    gradients = [jax.jit(jax.grad(value(layer)))(features) for layer in (ours, flax)]
    np.testing.assert_allclose(*gradients, **CLOSE)
    np.testing.assert_allclose(ours(features), flax(features), **CLOSE)
    np.testing.assert_allclose(ours.var[...], flax.var[...], rtol=1e-5)
    ours.eval()
    flax.eval()
    np.testing.assert_allclose(ours(features), flax(features), **CLOSE)


def test_batch_norm_takes_the_batch_in_training_and_buffers_in_evaluation():
    net, params, buffers, images = start("lenet", norm="batch", **TINY)
    first = numpy_convolution(
        (images - CIFAR_MEAN) / CIFAR_STD, params["layers"][0], stride=2
    )
    mean, var = first.mean((0, 1, 2)), first.var((0, 1, 2))
    statistics = jax.jit(net.statistics)(params, images)
    np.testing.assert_allclose(statistics["norms"][0]["mean"], mean, **CLOSE)
    np.testing.assert_allclose(statistics["norms"][0]["var"], var, **CLOSE)
    trained, moved = net.apply(params, buffers, images, train=True)
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, buffers, statistics)
    for leaf_path, leaf in flat(expected).items():
        np.testing.assert_allclose(flat(moved)[leaf_path], leaf, **CLOSE)
    evaluated, kept = net.apply(params, buffers, images, train=False)
    assert all((flat(kept)[p] == leaf).all() for p, leaf in flat(buffers).items())
    assert np.abs(trained - evaluated).max() > 0.01
    # Evaluated on the batch's own statistics, the network does as in training.
    same, _ = net.apply(params, statistics, images, train=False)
    np.testing.assert_allclose(same, trained, **CLOSE)


def test_buffers_may_be_numpy_arrays_and_stay_as_they_are():
    net, params, buffers, images = start("lenet", norm="batch", **TINY)
    before = jax.tree.map(np.copy, buffers)
    loss = lambda p: net.apply(p, buffers, images, train=True)[0].sum()  # noqa: E731
    jax.grad(loss)(params)
    for leaf, old in zip(*map(jax.tree.leaves, (buffers, before)), strict=True):
        leaf.flags.writeable = False
        np.testing.assert_array_equal(leaf, old)
    jax.grad(loss)(params)  # read-only ones too


def test_no_batch_norm_no_statistics():
    net, params, buffers, images = start("mlp", norm="layer", **TINY)
    assert buffers == {} == net.statistics(params, images)


def test_statistics_are_differentiable_in_images():
    net, params, _, images = start("lenet", norm="batch", **TINY)
    direction = images[::-1] - 0.5

    @jax.jit
    def means(t):
        norms = net.statistics(params, images + t * direction)["norms"]
        return norms[0]["mean"], norms[2]["mean"]

    slopes = jax.jvp(means, (0.0,), (1.0,))[1]
    # The mean before the first norm is linear in the images: the difference is exact.
    np.testing.assert_allclose(slopes[0], means(1.0)[0] - means(0.0)[0], **CLOSE)
    assert all(slope.all() for slope in slopes)  # No gradient is stopped.


def per_network_gradient(net, train):
    def loss(params, buffers, images):
        logits, _ = net.apply(params, buffers, images, train)
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    return jax.vmap(jax.grad(loss))


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_of_two_networks_under_vmap(name):
    net, *one = start(name, **TINY)
    _, *two = start(name, seed=1, **TINY)
    both = jax.tree.map(lambda *leaves: np.stack(leaves), one, two)
    update = jax.jit(per_network_gradient(net, train=True))(*both)
    assert jax.tree.map(np.shape, update) == jax.tree.map(np.shape, both[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
    last = update["layers"][max(update["layers"])]["bias"]
    for i, (params, buffers, images) in enumerate([one, two]):
        logits, _ = net.apply(params, buffers, images, train=True)
        # The gradient of the last bias is softmax minus one-hot.
        expected = np.mean(softmax(logits, axis=1) - np.eye(3)[0], axis=0)
        np.testing.assert_allclose(last[i], expected, **CLOSE)


@pytest.mark.parametrize("stem", models.STEMS)
def test_resnet_traces_under_vmap(stem):
    net = models.build("resnet18", stem=stem, **TINY)
    keys = jax.ShapeDtypeStruct((2,), jax.random.key(0).dtype)
    params, buffers = jax.eval_shape(jax.vmap(net.init), keys)
    images = jax.ShapeDtypeStruct((2, 4, 9, 9, 3), jnp.float32)
    update = jax.eval_shape(per_network_gradient(net, True), params, buffers, images)
    assert jax.tree.map(jnp.shape, update) == jax.tree.map(jnp.shape, params)


def test_stem_follows_the_size_of_the_images():
    kernels = [
        shapes("resnet18", image_shape=(n, n, 1), num_classes=2, width=2, stem=stem)[0]
        for n, stem in [(63, None), (64, None), (64, "cifar"), (32, "imagenet")]
    ]
    sides = [params["stem"]["kernel"].shape[0] for params in kernels]
    assert sides == [3, 7, 3, 7]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "convnt5"}, "name='convnt5' .*mlp, cnn.* Did you mean convnet5"),
        ({"activation": "rleu"}, "activation='rleu' .*sigmoid.* Did you mean relu"),
        ({"norm": "bacth"}, "norm='bacth' .*group, layer.* Did you mean batch"),
        ({"init": "zeros"}, "init='zeros' to be one of default, wide.$"),
        ({"width": 0}, "width=0 to be a whole number > 0"),
        ({"num_classes": 2.5}, "num_classes=2.5 to be a whole"),
        ({"image_shape": (9, 9)}, r"image_shape=\(9, 9\) to be \(height"),
        ({"image_shape": (9, 0, 3)}, "image_shape=0 to be a whole number > 0"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) with one value a channel: 3"),
        ({"std": (1, 0, 1)}, r"std=\(1.0, 0.0, 1.0\) > 0"),
        ({"stem": "cifar"}, "stem='cifar' with name=resnet18 only; mlp has one"),
        ({"name": "resnet18", "stem": "mnist"}, "stem='mnist' .*cifar, imagenet"),
        ({"hidden": 9}, "hidden=9 with name=cnn, resnet20, resnet18 only; mlp has no"),
        ({"name": "cnn", "hidden": 0}, "hidden=0 to be a whole number > 0"),
        ({"name": "cnn", "image_shape": (9, 3, 3)}, "at least 4: pooling"),
        ({"name": "convnet", "image_shape": (8, 9, 3)}, "at least 9: pooling"),
    ],
)
def test_wrong_arguments_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        models.build(**({"name": "mlp"} | TINY | changes))


@pytest.mark.parametrize(
    ("shape", "dtype", "match"),
    [
        ((2, 9, 9, 1), jnp.float32, r"shape \(2, 9, 9, 1\) to be \(batch, .*9, 9, 3"),
        ((9, 9, 3), jnp.float32, r"shape \(9, 9, 3\) to be \(batch"),
        ((2, 9, 9, 3), jnp.uint8, "dtype uint8 to be floats .* by 255"),
    ],
)
def test_wrong_images_are_named(shape, dtype, match):
    net, params, buffers, _ = start("mlp", **TINY)
    with pytest.raises(ValueError, match=match):
        net.apply(params, buffers, jnp.zeros(shape, dtype), train=True)
