"""ReLU made smooth: closed forms, what is left alone, and whole networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import models
from invertjax import clients, losses, trees
from invertjax.rewrites import smoothing

SHARPNESS = 8.0
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
X = jnp.array([-30.0, -1.0, -0.01, 0.0, 0.02, 0.5, 40.0])
# Two programs of one function may take another exponential: some eps of 1.2e-7.
SAME = {"rtol": 1e-5, "atol": 1e-7}


def softplus(x):
    return jax.nn.softplus(SHARPNESS * x) / SHARPNESS


def maximum(x):
    return jnp.maximum(x, 0)


@jax.jit
@jax.checkpoint
def nested(x):
    return jax.jit(jax.nn.relu)(x)


RELUS = {
    "relu": jax.nn.relu,
    "max(x, 0)": maximum,
    "max(0, x)": lambda x: jnp.maximum(0, x),
    "max(0.0, x)": lambda x: jnp.maximum(0.0, x),
    "array": lambda x: jnp.maximum(np.float32(0), x),
    "jit": jax.jit(jax.nn.relu),
    "jit of max": jax.jit(maximum),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "checkpoint of max": jax.checkpoint(maximum),
    "nested": nested,
    "vmap": jax.vmap(jax.nn.relu),
    "vmap of max": jax.vmap(maximum),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_a_relu_becomes_softplus(name):
    fun = RELUS[name]
    assert smoothing.has_relu(fun, X)
    soft = smoothing.softened(fun, SHARPNESS)
    np.testing.assert_allclose(soft(X), softplus(X), **SAME)
    slope = jax.grad(lambda x: jnp.sum(soft(x)))(X)
    np.testing.assert_allclose(slope, jax.nn.sigmoid(SHARPNESS * X), **SAME)
    assert slope[3] == 0.5  # where jax.nn.relu has 0


@pytest.mark.parametrize("fun", [jax.nn.relu, maximum], ids=["relu", "maximum"])
def test_infinite_sharpness_is_the_function_itself(fun):
    x = jnp.concatenate([X, jnp.array([-jnp.inf, -3e38, 3e38, jnp.inf])])
    soft = smoothing.softened(fun, jnp.inf)
    np.testing.assert_array_equal(soft(x), fun(x))
    slope = jax.grad(lambda x: jnp.sum(soft(x)))(x)
    np.testing.assert_array_equal(slope[x != 0], x[x != 0] > 0)


@pytest.mark.parametrize("sharpness", [1.0, 8.0, 512.0])
def test_the_error_is_at_most_log_2_over_the_sharpness(sharpness):
    x = (jnp.arange(1001.0) - 500) / 128
    error = smoothing.softened(jax.nn.relu, sharpness)(x) - jax.nn.relu(x)
    bound = np.log(2) / sharpness
    assert error.min() >= -1e-6  # rounding of 4
    assert error.max() <= bound + 1e-6
    np.testing.assert_allclose(error[500], bound, rtol=1e-6)  # at 0


def test_a_scalar_zero():
    for fun in (jax.nn.relu, maximum):
        value = smoothing.softened(fun, SHARPNESS)(jnp.zeros(()))
        np.testing.assert_allclose(value, np.log(2) / SHARPNESS, rtol=1e-6)


def test_integers_stay_as_they_are():
    def fun(row, x):
        row = jnp.maximum(row, 0)
        return row, jax.nn.relu(x)[row]

    rows = jnp.array([-2, 0, 3])
    found, values = smoothing.softened(fun, SHARPNESS)(rows, X)
    assert found.dtype == rows.dtype
    np.testing.assert_array_equal(found, [0, 0, 3])
    np.testing.assert_allclose(values, softplus(X)[jnp.array([0, 0, 3])], **SAME)
    assert not smoothing.has_relu(maximum, rows)


cubed = jax.custom_jvp(lambda x: jax.nn.relu(x) ** 3)
cubed.defjvp(lambda x, dx: (cubed(*x), 7 * dx[0]))  # wrong on purpose
doubled = jax.custom_vjp(lambda x: 2 * jax.nn.relu(x))
doubled.defvjp(lambda x: (doubled(x), None), lambda _, dy: (5 * dy,))


def scanned(x):
    return lax.scan(lambda x, _: (jax.nn.relu(x), None), x, length=2)[0]


OTHERS = {
    name: getattr(jax.nn, name)
    for name in ("softplus", "gelu", "logsumexp", "silu", "sigmoid", "leaky_relu")
}
OTHERS |= {
    "max(x, 1)": lambda x: jnp.maximum(x, 1),
    "max(x, x)": lambda x: jnp.maximum(x, -x),
    "min(x, 0)": lambda x: jnp.minimum(x, 0),
    "max": jnp.max,
    "softmax": jax.nn.log_softmax,
    "custom_jvp": cubed,
    "custom_vjp": doubled,
    "scan": scanned,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay_as_they_are(name):
    fun = OTHERS[name]
    assert not smoothing.has_relu(fun, X)
    soft = smoothing.softened(fun, SHARPNESS)
    np.testing.assert_allclose(soft(X), fun(X), **SAME)
    slopes = [jax.grad(lambda x: jnp.sum(f(x)))(X) for f in (soft, fun)]  # noqa: B023
    np.testing.assert_allclose(*slopes, **SAME)


def test_composes_with_transformations_and_a_traced_sharpness():
    def loss(x, sharpness):
        return smoothing.softened(lambda: jax.nn.relu(3 * x) ** 2, sharpness)()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def slopes(x, sharpness):
        first = jax.grad(loss)
        forward = jax.jvp(lambda x: first(x, sharpness), (x,), (1.0,))
        return *forward, jax.grad(first)(x, sharpness)

    x, s = np.linspace(-0.5, 1, 7)[:, None], np.array([2.0, 16.0])
    value, slope = np.log1p(np.exp(3 * s * x)) / s, 1 / (1 + np.exp(-3 * s * x))
    first = 6 * value * slope
    second = 18 * (slope**2 + value * s * slope * (1 - slope))
    got = slopes(jnp.asarray(x[:, 0], jnp.float32), jnp.asarray(s, jnp.float32))
    for a, b in zip(got, (first, second, second), strict=True):
        # Down to exp(-24): its argument alone rounds by 24 eps of 1.2e-7.
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_any_arguments_and_results():
    def fun(batch, key, mode, *, train):
        assert mode == "mean" and train is True
        noise = jax.random.normal(key, batch["image"].shape)
        return {"out": [jax.nn.relu(batch["image"]), noise], "none": None}

    batch = {"image": X, "label": np.arange(3)}
    soft = smoothing.softened(fun, SHARPNESS)
    got = soft(batch, jax.random.key(0), "mean", train=True)
    expected = fun(batch, jax.random.key(0), "mean", train=True)
    np.testing.assert_allclose(got["out"][0], softplus(X), **SAME)
    np.testing.assert_array_equal(got["out"][1], expected["out"][1])
    assert got["none"] is None
    assert soft.__name__ == "fun"


def test_keeps_the_type():
    for dtype in (jnp.bfloat16, jnp.float16):  # not run: some CPUs have no float16
        soft = smoothing.softened(jax.nn.relu, jnp.float32(8.0))
        x = jax.ShapeDtypeStruct(X.shape, dtype)
        assert jax.eval_shape(soft, x).dtype == dtype
    narrow = smoothing.softened(jax.nn.relu, 8.0)(X.astype(jnp.bfloat16))
    exact = smoothing.softened(jax.nn.relu, 8.0)(
        X.astype(jnp.bfloat16).astype(jnp.float32)
    )
    np.testing.assert_allclose(narrow.astype(jnp.float32), exact, atol=2**-6)


def test_float64_to_its_rounding(x64):
    x = jnp.linspace(-2, 2, 9)
    value, slope = jax.jvp(smoothing.softened(maximum, 10.0), (x,), (jnp.ones(9),))
    assert value.dtype == jnp.float64
    expected = np.log1p(np.exp(10 * np.asarray(x))) / 10
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-10 * np.asarray(x))), rtol=1e-13)


# Whole networks


def problem(name, **options):
    """A network, its loss, and the shapes of a batch."""
    net = models.build(name, image_shape=(8, 8, 3), num_classes=4, **options)

    def loss_fn(params, buffers, batch):
        logits, _ = net.apply(params, buffers, batch["image"], train=True)
        return losses.cross_entropy(logits, batch["label"])

    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((2,), jnp.int32)
    return net, loss_fn, {"image": image, "label": label}


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "sigmoid"])
def test_has_relu_tells_networks_apart(name, activation):
    net, loss_fn, batch = problem(name, activation=activation, width=2)
    params, buffers = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    found = smoothing.has_relu(loss_fn, params, buffers, batch)
    assert found == (activation == "relu")


@pytest.mark.parametrize(
    "name, width",
    [("cnn", 8), pytest.param("resnet20", 2, marks=pytest.mark.slow)],
)
def test_the_gradient_of_a_network_tends_to_its_own(name, width):
    net, loss_fn, shapes = problem(name, width=width)
    sharpness = jnp.array([4.0, 32.0, 256.0, 2048.0, jnp.inf])
    random = np.random.default_rng(0).uniform(size=shapes["image"].shape)
    batch = {"image": jnp.asarray(random, jnp.float32), "label": jnp.array([0, 3])}

    def errors(batch):
        params, buffers = net.init(jax.random.key(0))

        def shared(fun):
            def loss(params, batch):
                return fun(params, buffers, batch)

            return clients.gradient(loss, matrix_products=False)(params, batch, None)

        def soft(s):
            return shared(smoothing.softened(loss_fn, s))

        plain = shared(loss_fn)
        gap = jax.tree.map(lambda a, b: a - b[None], lax.map(soft, sharpness), plain)
        squares = [jnp.sum(g.reshape(len(g), -1) ** 2, 1) for g in jax.tree.leaves(gap)]
        return jnp.sqrt(sum(squares) / trees.squared_norm(plain))

    # It takes longer to compile than to run.
    program = jax.jit(errors).lower(batch).compile(OPTIONS)
    error = program(batch)
    assert error[0] > 0.1  # far from it at first
    assert (np.diff(error) < 0).all()
    assert error[3] < 0.1
    assert error[4] < 1e-5
