"""Convolutions as matrix products: values, derivatives, and what is left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

from invertjax import convolutions

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
# Float32 sums of at most a few hundred terms, twice differentiated, in another order:
# about sqrt(300) * 6e-8 = 1e-6 of the largest entry. Ten times that.
TOLERANCE = 1e-5

# name: (lhs shape, rhs shape, strides, padding, other parameters)
COVERED = {
    "same": ((2, 5, 6, 2), (3, 3, 2, 3), (1, 1), "SAME", {}),
    "same_strided": ((2, 6, 5, 2), (3, 3, 2, 3), (2, 2), "SAME", {}),
    "valid_even_kernel": ((2, 7, 6, 2), (2, 4, 2, 3), (3, 1), "VALID", {}),
    "asymmetric": ((1, 4, 5, 2), (3, 2, 2, 3), (1, 2), ((0, 2), (3, 1)), {}),
    "negative_padding": ((1, 7, 6, 2), (2, 3, 2, 3), (1, 1), ((-2, 1), (1, -1)), {}),
    "rhs_dilation": ((1, 7, 6, 2), (3, 2, 2, 3), (2, 1), "SAME", {"rhs_dilation": (2, 3)}),
    "lhs_dilation": (
        (1, 3, 4, 2), (3, 3, 2, 3), (1, 2), ((1, 2), (-1, 1)),
        {"lhs_dilation": (2, 3), "rhs_dilation": (1, 2)},
    ),
    "pointwise": ((2, 3, 4, 2), (1, 1, 2, 3), (1, 1), "VALID", {}),
    "pointwise_strided": ((2, 5, 4, 2), (1, 1, 2, 3), (2, 3), "VALID", {}),
    "feature_groups": (
        (2, 4, 5, 6), (3, 2, 3, 4), (2, 1), "SAME", {"feature_group_count": 2},
    ),
    "depthwise": (
        (1, 4, 4, 3), (3, 3, 1, 6), (1, 1), "SAME", {"feature_group_count": 3},
    ),
    "batch_groups": (
        (4, 4, 5, 2), (3, 2, 2, 6), (1, 2), "SAME", {"batch_group_count": 2},
    ),
    "nchw": (
        (2, 2, 6, 5), (3, 2, 3, 2), (2, 1), "SAME", {"dimension_numbers": NCHW},
    ),
    "nchw_feature_groups": (
        (2, 4, 4, 3), (6, 2, 3, 2), (1, 1), ((1, 0), (0, 1)),
        {"dimension_numbers": NCHW, "feature_group_count": 2},
    ),
    "mixed_layout": (
        (5, 2, 2, 4), (3, 2, 3, 2), (2, 1), "SAME",
        {"dimension_numbers": ("HNCW", "OHWI", "WCHN")},
    ),
    "one_dimension": (
        (2, 9, 2), (4, 2, 3), (2,), "SAME",
        {"dimension_numbers": ("NWC", "WIO", "NWC"), "rhs_dilation": (2,)},
    ),
    "three_dimensions": (
        (1, 3, 4, 3, 2), (2, 3, 2, 2, 2), (1, 2, 1), "SAME",
        {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
}  # fmt: skip
KEPT = {
    "many_slices": (
        (1, 260, 1), (257, 1, 1), (1,), "VALID",
        {"dimension_numbers": ("NWC", "WIO", "NWC")},
    ),
    "empty": ((0, 3, 3, 2), (2, 2, 2, 3), (1, 1), "VALID", {}),
}  # fmt: skip


def convolve(lhs, rhs, **params):
    params = {"dimension_numbers": NHWC, "window_strides": (1, 1)} | params
    return lax.conv_general_dilated(lhs, rhs, **{"padding": "SAME"} | params)


def case(row):
    lhs_shape, rhs_shape, strides, padding, params = row
    rng = np.random.default_rng(0)
    lhs = jnp.asarray(rng.normal(size=lhs_shape), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=rhs_shape), jnp.float32)
    params = {"window_strides": strides, "padding": padding} | params
    return functools.partial(convolve, **params), lhs, rhs


def primitives(fun, *args):
    """The names of all primitives in the jaxpr of `fun`, in order, nested ones too."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            for inner in core.jaxprs_in_params(eqn.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(fun)(*args).jaxpr))


def derivatives(fun):
    """Value, gradients in both arguments, and gradients of |weight gradient|^2."""

    def loss(lhs, rhs):
        return jnp.sum(jnp.tanh(fun(lhs, rhs)))

    def matching(lhs, rhs):
        return jnp.sum(jax.grad(loss, 1)(lhs, rhs) ** 2)

    return lambda lhs, rhs: (
        fun(lhs, rhs),
        jax.grad(loss, (0, 1))(lhs, rhs),
        jax.grad(matching, (0, 1))(lhs, rhs),
    )


def assert_close(got, expected, tolerance=TOLERANCE):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * np.max(np.abs(b), initial=0)
        )


def network(params, images):
    """Two convolutions with relu and softplus, one of them strided and grouped."""
    hidden = jax.nn.relu(convolve(images, params["first"]))
    hidden = convolve(
        hidden, params["second"], window_strides=(2, 2), feature_group_count=2
    )
    return jnp.mean(jax.nn.softplus(hidden))


def network_inputs():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"first": draw(3, 3, 2, 4), "second": draw(2, 2, 2, 4)}
    return params, draw(2, 4, 4, 2)


@pytest.mark.parametrize("name", [*COVERED, *KEPT])
def test_equals_lax_up_to_second_order(name):
    fun, lhs, rhs = case((COVERED | KEPT)[name])

    @jax.jit
    def both(lhs, rhs):
        product = convolutions.as_matrix_products(fun)
        return derivatives(product)(lhs, rhs), derivatives(fun)(lhs, rhs)

    assert_close(*both(lhs, rhs))


@pytest.mark.parametrize("name", [*COVERED, *KEPT])
def test_covers_what_it_documents(name):
    fun, lhs, rhs = case((COVERED | KEPT)[name])
    names = primitives(convolutions.as_matrix_products(fun), lhs, rhs)
    assert ("conv_general_dilated" in names) == (name in KEPT)
    if name in COVERED:
        assert names.count("dot_general") == 1


def test_channel_last_moves_no_data_in_vain():
    fun, lhs, rhs = case(COVERED["same_strided"])
    names = primitives(convolutions.as_matrix_products(fun), lhs, rhs)
    assert "transpose" not in names
    assert names.count("slice") == 3 + 3  # One a row and one a column of the kernel.
    fun, lhs, rhs = case(COVERED["pointwise"])
    names = primitives(convolutions.as_matrix_products(fun), lhs, rhs)
    assert names == ["reshape", "dot_general"]


def test_no_convolution_in_vmapped_gradient_matching():
    params, images = network_inputs()

    def matching(loss_fn):
        def objective(images):
            grads = jax.grad(loss_fn)(params, images)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads))

        return jax.vmap(jax.grad(objective))

    candidates = jnp.stack([images, 2 * images])
    rewritten = matching(convolutions.as_matrix_products(network))
    assert "conv_general_dilated" in primitives(matching(network), candidates)
    assert "conv_general_dilated" not in primitives(rewritten, candidates)
    both = jax.jit(lambda x: (rewritten(x), matching(network)(x)))
    assert_close(*both(candidates))


def test_derivative_inside_is_rewritten_too():
    params, images = network_inputs()
    gradient = jax.grad(network, (0, 1))
    rewritten = convolutions.as_matrix_products(gradient)
    assert "conv_general_dilated" not in primitives(rewritten, params, images)
    both = jax.jit(lambda *args: (rewritten(*args), gradient(*args)))
    assert_close(*both(params, images))


def test_custom_jvp_calls_stay():
    params, images = network_inputs()
    loss_fn = convolutions.as_matrix_products(network)
    before = primitives(network, params, images)
    after = primitives(loss_fn, params, images)
    assert before.count("custom_jvp_call") == 2 == after.count("custom_jvp_call")
    # relu's own rule: derivative 0 at 0, where that of max(x, 0) is 1/2.
    zero = jnp.zeros((1, 2, 2, 1))
    fun = lambda x: jnp.sum(jax.nn.relu(convolve(x, jnp.ones((1, 1, 1, 1)))))  # noqa: E731
    np.testing.assert_array_equal(
        jax.grad(convolutions.as_matrix_products(fun))(zero), zero
    )


@jax.custom_jvp
def _tripled_jvp(x, kernel):
    return convolve(x, kernel)


@_tripled_jvp.defjvp
def _(primals, tangents):
    return convolve(*primals), 3 * convolve(tangents[0], primals[1])


@jax.custom_vjp
def _doubled_vjp(x, kernel):
    return convolve(x, kernel)


_doubled_vjp.defvjp(
    lambda x, kernel: (convolve(x, kernel), (x, kernel)),
    lambda residuals, cotangent: (2 * cotangent, jnp.zeros_like(residuals[1])),
)


def _scanned(x, kernel):
    return lax.scan(lambda x, _: (convolve(x, kernel), jnp.sum(x)), x, length=3)


def _looped(x, kernel):
    return lax.while_loop(
        lambda carry: jnp.sum(convolve(carry[1], kernel)) > carry[0] - 99,
        lambda carry: (carry[0] + 1, 0.1 * convolve(carry[1], kernel)),
        (jnp.float32(97.5), x),
    )


def _branched(x, kernel):
    branches = [lambda x, k: x, convolve, lambda x, k: convolve(-x, k)]
    return lax.switch(jnp.sum(x > 0) % 3, branches, x, kernel)


CONTAINERS = {
    "jit": (jax.jit(convolve), True),
    "nested_jit": (jax.jit(lambda x, k: jax.jit(convolve)(jnp.sin(x), k)), True),
    "checkpoint": (jax.checkpoint(lambda x, k: jnp.sin(convolve(x, k))), True),
    "scan": (_scanned, True),
    "while": (_looped, False),
    "cond": (_branched, True),
    # These two rules are wrong on purpose, to see that they are the ones in use.
    "custom_jvp": (_tripled_jvp, True),
    "custom_vjp": (_doubled_vjp, True),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_rewrites_inside(name):
    fun, differentiable = CONTAINERS[name]
    _, x, kernel = case(((2, 4, 4, 2), (3, 3, 2, 2), (), "", {}))
    rewritten = convolutions.as_matrix_products(fun)
    before, after = primitives(fun, x, kernel), primitives(rewritten, x, kernel)
    calls = [name for name in before if name != "conv_general_dilated"]
    assert "conv_general_dilated" not in after
    assert [name for name in after if name in set(calls)] == calls

    def value_and_grad(fun):
        loss = lambda x: jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, fun(x, kernel)))  # noqa: E731
        return fun(x, kernel), jax.grad(loss)(x) if differentiable else 0 * x

    both = jax.jit(lambda: (value_and_grad(rewritten), value_and_grad(fun)))
    assert_close(*both())


def test_checkpoint_keeps_its_policy():
    policy = jax.checkpoint_policies.dots_saveable
    fun = jax.checkpoint(convolve, policy=policy)
    jaxpr = jax.make_jaxpr(convolutions.as_matrix_products(fun))(
        jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
    )
    assert jaxpr.eqns[-1].params["policy"] is policy


def test_repeated_convolutions_are_well_formed():
    # Two equal convolutions, in a jaxpr that jit keeps: variables must not be shared.
    fun = jax.jit(lambda x, k: convolve(convolve(x, k), k))
    rewritten = convolutions.as_matrix_products(fun)
    jaxpr = jax.make_jaxpr(rewritten)(jnp.ones((1, 3, 3, 2)), jnp.ones((2, 2, 2, 2)))
    core.check_jaxpr(jaxpr.jaxpr)
    bound = [v for eqn in jaxpr.eqns[0].params["jaxpr"].eqns for v in eqn.outvars]
    assert len(bound) == len(set(bound)) == 2 * 9  # Pad, 2 + 2 slices, ..., product.


def test_jitted_bodies_compile_once():
    x, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((2, 2, 2, 2))
    rewritten = convolutions.as_matrix_products(jax.jit(convolve))
    first, second = (jax.make_jaxpr(rewritten)(x, kernel) for _ in range(2))
    assert first.eqns[0].params["jaxpr"] is second.eqns[0].params["jaxpr"]


def test_sees_through_shard_map():
    mesh = jax.make_mesh((1,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec("n"), PartitionSpec()),
        out_specs=PartitionSpec("n"),
    )
    _, x, kernel = case(COVERED["same"])
    outside = convolutions.as_matrix_products(shard(convolve))
    inside = shard(convolutions.as_matrix_products(convolve))
    assert "conv_general_dilated" not in primitives(inside, x, kernel)
    for fun in (outside, inside):
        assert_close(jax.jit(fun)(x, kernel), convolve(x, kernel))


def test_closes_over_tracers():
    params, images = network_inputs()

    def summed(rewrite):
        def of_scale(scale, shift):
            # Closes over tracers of grad (scale) and of vmap (shift).
            fun = rewrite(
                lambda x: network(jax.tree.map(lambda p: scale * p, params), x + shift)
            )
            return fun(images)

        shifts = jnp.asarray([0.0, 1.0])
        return jax.grad(lambda s: jnp.sum(jax.vmap(of_scale, (None, 0))(s, shifts)))

    both = jax.jit(
        lambda s: (summed(convolutions.as_matrix_products)(s), summed(lambda f: f)(s))
    )
    assert_close(*both(jnp.float32(0.5)))


def test_any_arguments_and_results():
    def fun(batch, key, steps, mode, *, train, nothing=None):
        assert mode == "mean" and train is True and nothing is None
        assert isinstance(steps, int)  # A Python number stays one.
        image = batch["image"] + jax.random.normal(key, batch["image"].shape)
        logits = jnp.mean(convolve(image, jnp.ones((2, 2, 1, 4))), (1, 2))
        aux = {"label": batch["label"] + steps, "key": key, "weak": 2.0 * steps}
        return jax.nn.log_softmax(logits)[jnp.arange(2), batch["label"]], aux

    image = np.ones((2, 3, 3, 1), np.float32)
    batch = {"image": image, "label": np.array([1, 2], np.int32)}
    args = (batch, jax.random.key(0), 3, "mean")
    values, aux = convolutions.as_matrix_products(fun)(*args, train=True)
    expected, _ = fun(batch, jax.random.key(0), 3, "mean", train=True)
    assert_close(values, expected)
    np.testing.assert_array_equal(aux["label"], [4, 5])
    assert jax.random.key_data(aux["key"]).tolist() == [0, 0]
    assert isinstance(aux["weak"], jax.Array) and aux["weak"].weak_type
    assert convolutions.as_matrix_products(fun).__name__ == "fun"


def test_weak_types_survive():
    # A scan refuses a carry that changes its type, weak to strong included.
    kernel = jnp.full((2, 2, 1, 1), 0.5)
    assert kernel.weak_type
    fun = lambda x: lax.scan(lambda x, _: (convolve(x, kernel), None), x, length=2)[0]  # noqa: E731
    out = convolutions.as_matrix_products(fun)(jnp.full((1, 3, 3, 1), 1.0))
    assert out.weak_type
    np.testing.assert_allclose(out[0, 0, 0, 0], 4.0)  # Two sums of 4 * 0.5, exact.


@pytest.mark.parametrize(
    ("dtype", "result"), [(jnp.bfloat16, jnp.float32), (jnp.int8, jnp.int32)]
)
def test_keeps_preferred_element_type(dtype, result):
    # 300 is neither a bfloat16 (8 bits of mantissa hold 300 = 75 * 4, not 301) nor an
    # int8: the sum of 301 ones is right only where it is accumulated in `result`.
    lhs, rhs = jnp.ones((1, 1, 1, 301), dtype), jnp.ones((1, 1, 301, 1), dtype)
    fun = functools.partial(convolve, preferred_element_type=result)
    out = convolutions.as_matrix_products(fun)(lhs, rhs)
    assert out.dtype == result and out.item() == 301


def test_keeps_precision():
    fun = functools.partial(convolve, precision=lax.Precision.HIGHEST)
    x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
    jaxpr = jax.make_jaxpr(convolutions.as_matrix_products(fun))(x, kernel)
    (dot,) = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert dot.params["precision"] == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


class FlaxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(
            4, 4, (3, 3), strides=2, feature_group_count=2, rngs=rngs
        )
        self.up = nnx.ConvTranspose(4, 3, (2, 2), strides=(2, 2), rngs=rngs)
        self.head = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.gelu(self.up(self.second(x)))
        return self.head(jnp.mean(x, (1, 2)))


def test_flax_network_unmodified():
    graph, params, buffers = nnx.split(FlaxNet(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, batch):
        net = nnx.merge(graph, params, buffers, copy=True)
        log_probs = jax.nn.log_softmax(net(batch["image"]))
        return -jnp.mean(log_probs[jnp.arange(2), batch["label"]])

    images = np.random.default_rng(0).uniform(size=(2, 6, 6, 2)).astype(np.float32)
    batch = {"image": jnp.asarray(images), "label": jnp.array([0, 2])}
    rewritten = convolutions.as_matrix_products(loss_fn)
    assert "conv_general_dilated" in primitives(loss_fn, params, batch)
    assert "conv_general_dilated" not in primitives(rewritten, params, batch)
    got, expected = jax.jit(
        lambda p: tuple(jax.value_and_grad(f)(p, batch) for f in (rewritten, loss_fn))
    )(params)
    # A bias before a batch normalisation has gradient 0, so leaves are compared on
    # the scale of the largest one.
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


def test_plain_function_is_lax():
    lhs, rhs = np.ones((1, 4, 4, 2), np.float32), np.ones((2, 2, 2, 3), np.float32)
    out = convolutions.conv_general_dilated(
        lhs, rhs, (2, 2), "VALID", dimension_numbers=NHWC
    )
    np.testing.assert_array_equal(out, np.full((1, 2, 2, 3), 8.0))
    with pytest.raises(ValueError, match="feature_group_count"):
        convolutions.conv_general_dilated(
            lhs, rhs[:, :, :1], (2, 2), "VALID", dimension_numbers=NHWC
        )


def test_preferred_on_cpu_only(monkeypatch):
    for backend, expected in (("cpu", True), ("gpu", False), ("tpu", False)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert convolutions.preferred() is expected
