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

from invertjax.rewrites import convolutions

# Float32 sums of at most a few hundred terms, twice differentiated, in another order:
# about sqrt(300) * 6e-8 = 1e-6 of the largest entry, three times that where it is a
# difference. A hundred times that: one wrong entry is off by a share of the largest.
TOLERANCE = 1e-4

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
NWC = {"dimension_numbers": ("NWC", "WIO", "NWC")}
NDHWC = {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}
MIXED = {"dimension_numbers": ("HNCW", "OHWI", "WCHN")}
GROUPS = {"feature_group_count": 2}
DEPTHWISE = {"feature_group_count": 3}
BATCH_GROUPS = {"batch_group_count": 2}
BOTH_DILATIONS = {"lhs_dilation": (2, 3), "rhs_dilation": (1, 2)}
# name: (lhs shape, rhs shape, strides, padding, other parameters)
COVERED = {
    "same": ((2, 5, 6, 2), (3, 3, 2, 3), (1, 1), "SAME", {}),
    "same_strided": ((2, 6, 5, 2), (3, 3, 2, 3), (2, 2), "SAME", {}),
    "valid": ((2, 7, 6, 2), (2, 4, 2, 3), (3, 1), "VALID", {}),
    "asymmetric": ((1, 4, 5, 2), (3, 2, 2, 3), (1, 2), ((0, 2), (3, 1)), {}),
    "negative": ((1, 7, 6, 2), (2, 3, 2, 3), (1, 1), ((-2, 1), (1, -1)), {}),
    "dilated": ((1, 3, 4, 2), (3, 3, 2, 3), (1, 2), ((1, 2), (-1, 1)), BOTH_DILATIONS),
    "pointwise": ((2, 3, 4, 2), (1, 1, 2, 3), (1, 1), "VALID", {}),
    "pointwise_strided": ((2, 5, 4, 2), (1, 1, 2, 3), (2, 3), "VALID", {}),
    "grouped": ((2, 4, 5, 6), (3, 2, 3, 4), (2, 1), "SAME", GROUPS),
    "depthwise": ((1, 4, 4, 3), (3, 3, 1, 6), (1, 1), "SAME", DEPTHWISE),
    "batch_grouped": ((4, 4, 5, 2), (3, 2, 2, 6), (1, 2), "SAME", BATCH_GROUPS),
    "nchw": ((2, 2, 6, 5), (3, 2, 3, 2), (2, 1), "SAME", NCHW),
    "nchw_grouped": ((2, 4, 4, 3), (6, 2, 3, 2), (1, 1), "SAME", NCHW | GROUPS),
    "mixed_layout": ((5, 2, 2, 4), (3, 2, 3, 2), (2, 1), "SAME", MIXED),
    "1d": ((2, 9, 2), (4, 2, 3), (2,), "SAME", NWC | {"rhs_dilation": (2,)}),
    "3d": ((1, 3, 4, 3, 2), (2, 3, 2, 2, 2), (1, 2, 1), "SAME", NDHWC),
}
KEPT = {
    "many_slices": ((1, 260, 1), (257, 1, 1), (1,), "VALID", NWC),
    "empty": ((0, 3, 3, 2), (2, 2, 2, 3), (1, 1), "VALID", {}),
}
ALL = COVERED | KEPT


def convolve(lhs, rhs, window_strides=(1, 1), padding="SAME", **params):
    params = {"dimension_numbers": NHWC} | params
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **params)


def case(row):
    *shapes, strides, padding, params = row
    rng = np.random.default_rng(0)
    lhs, rhs = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    params = {"window_strides": strides, "padding": padding} | params
    return functools.partial(convolve, **params), lhs, rhs


def primitives(fun, *args):
    """The names of all primitives in the jaxpr of `fun`, in order, nested ones too."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            for value in eqn.params.values():
                for inner in value if isinstance(value, tuple) else (value,):
                    if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                        yield from walk(inner)

    return list(walk(jax.make_jaxpr(fun)(*args)))


def total(tree):
    return sum(map(jnp.sum, jax.tree.leaves(tree)))


def derivatives(fun):
    """Value, gradients in both arguments, and gradients of |weight gradient|^2."""

    def loss(*args):
        out = fun(*args)
        return jnp.sum(jnp.tanh(out)), out

    def matching(*args):
        (dlhs, drhs), out = jax.grad(loss, (0, 1), has_aux=True)(*args)
        return jnp.sum(drhs**2), (out, dlhs, drhs)

    return jax.grad(matching, (0, 1), has_aux=True)


def assert_close(got, expected):
    """Equal trees of arrays, each up to TOLERANCE of its largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        atol = TOLERANCE * np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_same(derive, fun, *args):
    """`derive(fun)` is the same after rewriting, in one compilation for both."""
    rewritten = convolutions.as_matrix_products(fun)
    both = jax.jit(lambda *args: (derive(rewritten)(*args), derive(fun)(*args)))
    assert_close(*both(*args))


def network(params, images):
    """Two convolutions with relu and softplus, one of them strided and grouped."""
    hidden = jax.nn.relu(convolve(images, params["first"]))
    hidden = convolve(hidden, params["second"], (2, 2), feature_group_count=2)
    return jnp.mean(jax.nn.softplus(hidden))


def network_inputs():
    _, first, second = case(((3, 3, 2, 4), (2, 2, 2, 4), (), "", {}))
    images = np.random.default_rng(1).uniform(size=(2, 4, 4, 2))
    return {"first": first, "second": second}, jnp.asarray(images, jnp.float32)


@pytest.mark.parametrize("name", ALL)
def test_equals_lax_up_to_second_order(name):
    fun, lhs, rhs = case(ALL[name])
    names = primitives(convolutions.as_matrix_products(fun), lhs, rhs)
    assert names.count("conv_general_dilated") == (name in KEPT)
    assert names.count("dot_general") == (name in COVERED)
    assert_same(derivatives, fun, lhs, rhs)


def test_channel_last_moves_no_data_in_vain():
    fun, lhs, rhs = case(COVERED["same_strided"])
    names = primitives(convolutions.as_matrix_products(fun), lhs, rhs)
    assert "transpose" not in names
    assert names.count("slice") == 3 + 3  # One a row and one a column of the kernel.
    fun, lhs, rhs = case(COVERED["pointwise"])
    names = primitives(convolutions.as_matrix_products(fun), lhs, rhs)
    assert names == ["reshape", "dot_general"]


def matching(loss_fn):
    """The gradient of |gradient|^2 in the images, for candidates under `vmap`."""

    def objective(params, images):
        return total(jax.tree.map(jnp.square, jax.grad(loss_fn)(params, images)))

    return jax.vmap(jax.grad(objective, 1), (None, 0))


def test_no_convolution_in_vmapped_gradient_matching():
    params, images = network_inputs()
    args = (params, jnp.stack([images, 2 * images]))
    assert "conv_general_dilated" in primitives(matching(network), *args)
    before = matching(convolutions.as_matrix_products(network))
    after = convolutions.as_matrix_products(matching(network))
    for rewritten in (before, after):
        assert "conv_general_dilated" not in primitives(rewritten, *args)
    assert_same(matching, network, *args)
    assert_same(lambda fun: fun, matching(network), *args)


def test_relu_keeps_its_rule():
    def fun(x):
        return jnp.sum(jax.nn.relu(convolve(x, jnp.ones((1, 1, 1, 1)))))

    zero = jnp.zeros((1, 2, 2, 1))
    rewritten = convolutions.as_matrix_products(fun)
    assert primitives(rewritten, zero).count("custom_jvp_call") == 1
    # The rule says 0 at 0, where the derivative of max(x, 0) is 1/2.
    np.testing.assert_array_equal(jax.grad(rewritten)(zero), zero)


tripled = jax.custom_jvp(lambda x, k: convolve(x, k))
tripled.defjvp(lambda x_k, dots: (convolve(*x_k), 3 * convolve(dots[0], x_k[1])))
doubled = jax.custom_vjp(lambda x, k: convolve(x, k))
doubled.defvjp(lambda x, k: (convolve(x, k), k), lambda k, dy: (2 * dy, 0 * k))


def scanned(x, kernel):
    return lax.scan(lambda x, _: (convolve(x, kernel), jnp.sum(x)), x, length=3)


def looped(x, kernel):
    return lax.while_loop(
        lambda carry: jnp.sum(convolve(carry[1], kernel)) > carry[0] - 99,
        lambda carry: (carry[0] + 1, 0.1 * convolve(carry[1], kernel)),
        (jnp.float32(97.5), lax.stop_gradient(x)),
    )


def branched(x, kernel):
    branches = [lambda x, k: x, convolve, lambda x, k: convolve(-x, k)]
    return lax.switch(jnp.sum(x > 0) % 3, branches, x, kernel)


CONTAINERS = {
    "jit": jax.jit(lambda x, k: jax.jit(convolve)(jnp.sin(x), k)),
    "checkpoint": jax.checkpoint(lambda x, k: jnp.sin(convolve(x, k))),
    "scan": scanned,
    "while": looped,
    "cond": branched,
    # These two rules are wrong on purpose, to see that they are the ones in use.
    "custom_jvp": tripled,
    "custom_vjp": doubled,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_rewrites_inside(name):
    fun = CONTAINERS[name]
    _, x, kernel = case(((2, 4, 4, 2), (3, 3, 2, 2), (), "", {}))
    rewritten = convolutions.as_matrix_products(fun)
    before, after = primitives(fun, x, kernel), primitives(rewritten, x, kernel)
    calls = [name for name in before if name != "conv_general_dilated"]
    assert "conv_general_dilated" not in after
    assert [name for name in after if name in set(calls)] == calls
    derive = jax.grad if name != "while" else lambda fun: fun  # No reverse mode.
    assert_same(lambda fun: derive(lambda x: total(fun(x, kernel))), fun, x)


def test_keeps_checkpoint_policy_and_precision():
    policy = jax.checkpoint_policies.dots_saveable
    fun = functools.partial(convolve, precision=lax.Precision.HIGHEST)
    rewritten = convolutions.as_matrix_products(jax.checkpoint(fun, policy=policy))
    call = jax.make_jaxpr(rewritten)(*case(COVERED["same"])[1:]).eqns[-1]
    assert call.params["policy"] is policy
    product = call.params["jaxpr"].eqns[-1]
    assert product.params["precision"] == (lax.Precision.HIGHEST,) * 2


def test_jitted_bodies_are_well_formed_and_compile_once():
    x, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((2, 2, 2, 2))
    fun = jax.jit(lambda x, k: convolve(convolve(x, k), k))
    rewritten = convolutions.as_matrix_products(fun)
    traces = [jax.make_jaxpr(lambda *a: rewritten(*a))(x, kernel) for _ in range(2)]
    first, second = (trace.eqns[0].params["jaxpr"] for trace in traces)
    assert first is second
    # The two convolutions are equal, but may not bind the same variables.
    bound = [var for eqn in first.eqns for var in eqn.outvars]
    assert len(bound) == len(set(bound)) > 2


def test_sees_through_shard_map():
    mesh = jax.make_mesh((1,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (PartitionSpec("n"), PartitionSpec())}
    specs["out_specs"] = PartitionSpec("n")
    shard = functools.partial(jax.shard_map, mesh=mesh, **specs)
    _, x, kernel = case(COVERED["same"])
    inside = shard(convolutions.as_matrix_products(convolve))
    assert "conv_general_dilated" not in primitives(inside, x, kernel)
    outside = convolutions.as_matrix_products(shard(convolve))
    for fun in (outside, inside):
        assert_close(jax.jit(fun)(x, kernel), convolve(x, kernel))


def test_closes_over_tracers():
    params, images = network_inputs()

    def derive(rewrite):
        def of_scale(scale, shift):  # A tracer of grad, and one of vmap.
            scaled = jax.tree.map(lambda leaf: scale * leaf, params)
            return rewrite(lambda x: network(scaled, x + shift))(images)

        losses = jax.vmap(of_scale, (None, 0))
        return jax.grad(lambda scale: total(losses(scale, jnp.array([0.0, 1.0]))))

    rewritten = derive(convolutions.as_matrix_products)
    assert_close(rewritten(0.5), derive(lambda fun: fun)(0.5))


def test_any_arguments_and_results():
    def fun(batch, key, steps, mode, *, train, nothing=None):
        assert mode == "mean" and train is True and nothing is None
        assert isinstance(steps, int)  # A Python number stays one.
        image = batch["image"] + jax.random.normal(key, batch["image"].shape)
        logits = jnp.mean(convolve(image, jnp.ones((2, 2, 1, 4))), (1, 2))
        aux = {"label": batch["label"] + steps, "number": 2.0 * steps}
        return jax.nn.log_softmax(logits)[jnp.arange(2), batch["label"]], aux

    image, label = np.ones((2, 3, 3, 1), np.float32), np.array([1, 2], np.int32)
    batch = {"image": image, "label": label}
    rewritten = convolutions.as_matrix_products(fun)
    values, aux = rewritten(batch, jax.random.key(0), 3, "mean", train=True)
    expected, _ = fun(batch, jax.random.key(0), 3, "mean", train=True)
    assert_close(values, expected)
    np.testing.assert_array_equal(aux["label"], [4, 5])
    assert isinstance(aux["number"], jax.Array) and aux["number"] == 6
    assert rewritten.__name__ == "fun"


def test_weak_types_survive():
    # A scan refuses a carry that changes its type, weak to strong included.
    kernel = jnp.full((2, 2, 1, 1), 0.5)
    rewritten = convolutions.as_matrix_products(scanned)
    x = jnp.full((1, 4, 4, 1), 1.0)
    assert "conv_general_dilated" not in primitives(rewritten, x, kernel)
    out, _ = rewritten(x, kernel)
    assert x.weak_type and kernel.weak_type and out.weak_type
    np.testing.assert_array_equal(out[0, 0, 0, 0], 8)  # Three sums of 4 * 0.5.


@pytest.mark.parametrize(
    ("dtype", "result"), [(jnp.bfloat16, jnp.float32), (jnp.int8, jnp.int32)]
)
def test_keeps_preferred_element_type(dtype, result):
    # 301 fits neither bfloat16 (8 bits of significand) nor int8.
    lhs, rhs = jnp.ones((1, 1, 1, 301), dtype), jnp.ones((1, 1, 301, 1), dtype)
    fun = functools.partial(convolve, preferred_element_type=result)
    rewritten = convolutions.as_matrix_products(fun)
    out = rewritten(lhs, rhs)
    assert out.dtype == result and out.item() == 301
    assert "conv_general_dilated" not in primitives(rewritten, lhs, rhs)


class FlaxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(4, 4, 3, strides=2, feature_group_count=2, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 3, (2, 2), strides=(2, 2), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return jnp.mean(self.up(nnx.gelu(self.second(x))) ** 2, (1, 2))


def test_flax_network_unmodified():
    graph, params, buffers = nnx.split(FlaxNet(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, batch):
        net = nnx.merge(graph, params, buffers, copy=True)
        log_probs = jax.nn.log_softmax(net(batch["image"]))
        return -jnp.mean(log_probs[jnp.arange(2), batch["label"]])

    image = np.random.default_rng(0).uniform(size=(2, 6, 6, 2)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "label": jnp.array([0, 2])}
    rewritten = convolutions.as_matrix_products(loss_fn)
    assert "conv_general_dilated" in primitives(loss_fn, params, batch)
    assert "conv_general_dilated" not in primitives(rewritten, params, batch)
    assert_same(jax.value_and_grad, loss_fn, params, batch)


def test_plain_function_is_lax():
    lhs, rhs = np.ones((1, 4, 4, 2), np.float32), np.ones((2, 2, 2, 3), np.float32)
    product = functools.partial(
        convolutions.conv_general_dilated,
        window_strides=(2, 2), padding="VALID", dimension_numbers=NHWC,
    )  # fmt: skip
    np.testing.assert_array_equal(product(lhs, rhs), np.full((1, 2, 2, 3), 8.0))
    with pytest.raises(ValueError, match="feature_group_count"):
        product(lhs, rhs[:, :, :1])


def test_preferred_where_they_were_measured_to_be_faster(monkeypatch):
    for backend, expected in (("cpu", True), ("gpu", True), ("tpu", False)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert convolutions.preferred() is expected
