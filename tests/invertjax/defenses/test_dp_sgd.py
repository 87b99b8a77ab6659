"""DP-SGD: a closed form on a linear model, then its noise, and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

from invertjax import clients, defenses, trees
from invertjax.defenses import accounting

PLAIN = clients.gradient(toy.loss_fn)
KEY = 3


def gradient_of_squares(params, batch, key):
    """Of mean over rows of (w x + b - y)^2 / 2: on a row, (w x + b - y) (x, 1)."""
    del key

    def loss(params):
        errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
        return 0.5 * jnp.mean(errors**2)

    return jax.grad(loss)(params)


def linear_problem(rows=5, features=4):
    rng = np.random.default_rng(0)
    params = {"w": toy.floats(rng.normal(size=features)), "b": jnp.float32(0.3)}
    batch = {
        "x": toy.floats(rng.normal(size=(rows, features))),
        "y": toy.floats(rng.normal(size=rows)),
    }
    return params, batch


def shared(client, params, batch, seed=KEY):
    return jax.jit(client)(params, batch, jax.random.key(seed))


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


@pytest.mark.parametrize("at_once", [None, 1, 2, 6])
def test_the_clipped_mean_on_a_linear_model(at_once):
    params, batch = linear_problem(rows=6)
    x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"], np.float64)
    errors = x @ np.asarray(params["w"], np.float64) + float(params["b"]) - y
    norms = np.abs(errors) * np.sqrt((x**2).sum(1) + 1)  # of (w, b) together
    bound = np.median(norms)
    scaled = errors * np.minimum(1, bound / norms)
    expected = {"w": (scaled[:, None] * x).mean(0), "b": scaled.mean()}
    assert (norms > bound).sum() == 3
    client = defenses.dp_sgd(gradient_of_squares, bound, 0.0, examples_at_once=at_once)
    assert_close(shared(client, params, batch), expected)


def test_without_noise_and_bound_it_is_the_plain_gradient():
    params, batch = toy.init(0), toy.batch(1, size=4)
    update = shared(defenses.dp_sgd(PLAIN, 1e6, 0.0), params, batch)
    assert_close(update, shared(PLAIN, params, batch))


def test_no_example_moves_the_sum_by_more_than_the_bound():
    """Nor by less: gradients here are longer than .01, so that all are clipped."""
    params, batch = linear_problem(rows=3)
    client = defenses.dp_sgd(gradient_of_squares, 0.01, 0.0)

    def total(rows):
        part = jax.tree.map(lambda leaf: leaf[np.array(rows)], batch)
        return jax.tree.map(lambda leaf: len(rows) * leaf, shared(client, params, part))

    everyone = total([0, 1, 2])
    for left in ([1, 2], [0, 2], [0, 1]):
        alone = optax.tree.sub(everyone, total(left))
        assert optax.tree.norm(alone) == pytest.approx(0.01, rel=1e-4)


def test_noise_has_standard_deviation_z_c_over_b():
    def flat(params, batch, key):
        del batch, key
        return jax.tree.map(jnp.zeros_like, params)

    params = {"a": jnp.zeros((200, 200)), "b": jnp.zeros((200, 200))}
    bound, multiplier, rows = 3.0, 0.5, 4
    client = defenses.dp_sgd(flat, bound, multiplier)
    one = shared(client, params, jnp.zeros((rows, 1)))
    expected = multiplier * bound / rows
    for leaf in (one["a"], one["b"]):
        # 40,000 draws: +- .35%. Noise for every row, or not divided, is twice or more.
        assert leaf.std() == pytest.approx(expected, rel=0.015)
        assert abs(leaf.mean()) < 4 * expected / 200
    # Own draws for leaves and clients: correlation 0 +- .005.
    other = shared(client, params, jnp.zeros((rows, 1)), seed=1)
    for leaf in (one["b"], other["a"]):
        assert abs(np.corrcoef(np.ravel(one["a"]), np.ravel(leaf))[0, 1]) < 0.03
    again = shared(client, params, jnp.zeros((rows, 1)))
    np.testing.assert_array_equal(one["a"], again["a"])


def test_every_local_step_has_its_own_noise():
    """Steps of 1 on zero gradients: k draws add up to sqrt(k), one drawn k times to k.

    And the clipped gradients of the steps themselves are those of a Python loop.
    """

    def flat(params, batch, key):
        del batch, key
        return jax.tree.map(jnp.zeros_like, params)

    noisy = clients.local(defenses.dp_sgd(flat, 1.0, 1.0), optax.sgd(1.0), steps=4)
    update = shared(noisy, {"a": jnp.zeros(40_000)}, jnp.zeros((2, 1)))
    assert update["a"].std() == pytest.approx(0.5 * 2, rel=0.015)

    params, batch = linear_problem(rows=4)
    private = defenses.dp_sgd(gradient_of_squares, 0.5, 0.0)
    local = clients.local(private, optax.sgd(0.1), steps=2, batch_size=2)
    now = params
    for rows in (slice(0, 2), slice(2, 4)):
        mini = jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)
        step = shared(private, now, mini)
        now = jax.tree.map(lambda p, g: p - 0.1 * g, now, step)
    assert_close(shared(local, params, batch), optax.tree.sub(params, now))


def test_every_example_has_its_own_key():
    def random(params, batch, key):
        del params
        return {"a": jax.random.normal(key, (20_000,)) * jnp.sum(batch)}

    rows = jnp.array([[1.0], [-1.0]])  # one key for both would cancel
    client = defenses.dp_sgd(random, 1e6, 0.0)
    update = shared(client, {"a": jnp.zeros(20_000)}, rows)
    assert update["a"].std() == pytest.approx(np.sqrt(2) / 2, rel=0.03)


def test_one_program_for_many_strengths_and_clients():
    params, batch = linear_problem(rows=2)
    bounds, multipliers = jnp.array([0.1, 1.0]), jnp.array([0.0, 0.5])

    @jax.jit
    @jax.vmap
    def sweep(bound, multiplier, seed):
        client = defenses.dp_sgd(gradient_of_squares, bound, multiplier)
        return client(params, batch, jax.random.key(seed))

    swept = sweep(bounds, multipliers, jnp.arange(2))
    for i, strengths in enumerate([(0.1, 0.0), (1.0, 0.5)]):
        client = defenses.dp_sgd(gradient_of_squares, *strengths)
        single = shared(client, params, batch, seed=i)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], swept), single)


def slope_and_difference(share, inputs):
    """Of |share(inputs)|^2 along its slope, and by central differences."""

    @jax.jit
    @jax.value_and_grad
    def loss(inputs):
        return trees.squared_norm(share(inputs))

    slope = loss(inputs)[1]
    norm = jnp.linalg.norm(slope)
    ahead, behind = (loss(inputs + step * slope / norm)[0] for step in (1e-2, -1e-2))
    return float(norm), float(ahead - behind) / 2e-2


def test_it_runs_backwards():
    """All clipped: what changes is the angle between the examples' gradients."""
    params, batch = toy.init(0), toy.batch(1, size=2)
    client = defenses.dp_sgd(PLAIN, 0.1, 0.0)
    share = clients.at(client, params, jax.random.key(0))
    slope, difference = slope_and_difference(
        lambda images: share({**batch, "image": images}), batch["image"]
    )
    assert slope > 1e-5
    assert difference == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("bound", [0.1, 1e6])
def test_it_runs_backwards_in_parts(bound):
    params, batch = linear_problem(rows=4)
    slopes = []
    for at_once in (None, 2):
        client = defenses.dp_sgd(
            gradient_of_squares, bound, 0.0, examples_at_once=at_once
        )
        share = clients.at(client, params, jax.random.key(0))
        slope, difference = slope_and_difference(
            lambda x, share=share: share({**batch, "x": x}), batch["x"]
        )
        assert difference == pytest.approx(slope, rel=0.02)
        slopes.append(slope)
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)


def test_it_is_differentiable_where_an_example_has_no_gradient():
    def scaled(params, batch, key):
        del key
        return jax.tree.map(lambda leaf: leaf * jnp.mean(batch), params)

    client = defenses.dp_sgd(scaled, 1.0, 0.0)
    share = clients.at(client, {"a": jnp.ones(3)}, jax.random.key(0))
    slope = jax.grad(lambda batch: jnp.sum(share(batch)["a"]))(jnp.zeros((2, 1)))
    np.testing.assert_allclose(slope, 1.5, rtol=1e-5)


def test_keeps_structure_shape_and_dtype():
    def flat(params, batch, key):
        del key
        return jax.tree.map(lambda leaf: leaf * batch.mean().astype(leaf.dtype), params)

    params = {"a": jnp.ones((3, 2), jnp.bfloat16), "b": [jnp.ones((), jnp.bfloat16)]}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    for at_once in (None, 2):
        for bound in (0.5, jnp.float32(0.5)):
            client = defenses.dp_sgd(flat, bound, 0.1, examples_at_once=at_once)
            update = shared(client, params, jnp.ones((4, 1)))
            assert jax.tree.structure(update) == jax.tree.structure(params)
            exact = shared(client, wide, jnp.ones((4, 1)))  # rounded once at the end
            for leaf, of_wide in zip(
                *map(jax.tree.leaves, (update, exact)), strict=True
            ):
                assert leaf.dtype == jnp.bfloat16
                np.testing.assert_array_equal(leaf, of_wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: defenses.dp_sgd(PLAIN, 0.0, 1.0), "max_norm=0.0 > 0"),
        (lambda: defenses.dp_sgd(PLAIN, 1.0, -1.0), "noise_multiplier=-1.0 >= 0"),
        (
            lambda: defenses.dp_sgd(PLAIN, 1.0, 1.0, examples_at_once=0),
            "examples_at_once=0 >= 1",
        ),
        (
            lambda: shared(
                defenses.dp_sgd(PLAIN, 1.0, 1.0, examples_at_once=2),
                toy.init(0),
                toy.batch(0, size=3),
            ),
            "examples_at_once=2 to divide 3 rows",
        ),
    ],
)
def test_ranges(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# In narrow params


def _constant(value):
    """A client whose gradient on a row of ones is `value`, in the params' dtype."""

    def client(params, batch, key):
        del key
        row = value * jnp.mean(batch)
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, row), params)

    return client


def test_noise_in_bfloat16_is_that_of_float32_rounded_once():
    """It was drawn in bfloat16: 128 values, none beyond 2.9 standard deviations."""
    client, rows = defenses.dp_sgd(_constant(0.0), 1.0, 1.0), jnp.ones((1, 1))
    draws = {
        dtype: shared(client, {"a": jnp.zeros(100_000, dtype)}, rows)["a"]
        for dtype in ("bfloat16", "float32")
    }
    np.testing.assert_array_equal(
        draws["bfloat16"], draws["float32"].astype(jnp.bfloat16)
    )
    assert len(np.unique(draws["bfloat16"])) > 1000
    beyond = np.mean(np.abs(np.asarray(draws["bfloat16"], np.float64)) > 2.9)
    # .00373 of a Gaussian, and .0002 is one standard deviation of 100,000 draws
    assert beyond == pytest.approx(0.0037, abs=0.0008)


def test_no_event_tells_neighbours_apart_in_bfloat16():
    """Two neighbours' sums, -C and C: an event of .04 under one has a share of
    e^-epsilon of that under the other, and not probability 0."""
    epsilon, delta, size = 10.0, 1e-5, 200_000
    run = dict(steps=1, delta=delta, batch_size=1, examples=1)
    z = accounting.noise_multiplier(epsilon, **run)
    params = [{"a": jnp.zeros((), jnp.bfloat16)}] * 2
    one, other = (
        jax.jit(
            jax.vmap(
                lambda key, value=value: defenses.dp_sgd(_constant(value), 1.0, z)(
                    params[0], jnp.ones((1, 1)), key
                )["a"]
            )
        )(jax.random.split(jax.random.key(5), size))
        for value in (-1.0, 1.0)
    )
    edge = -1 + 2.9 * z  # beyond it nothing was drawn from -C
    rare, often = (np.mean(np.asarray(x, np.float64) > edge) for x in (one, other))
    assert often > 0.04
    # .00187 is expected; at least e^-10 of the other, which would be 0 of 200,000
    assert rare == pytest.approx(0.00187, abs=0.0005)
    assert often <= np.exp(epsilon) * rare + delta


@pytest.mark.parametrize("value", [0.01, 300.0])
@pytest.mark.parametrize("at_once", [None, 1])
def test_sums_of_float16_rows_are_clipped_as_float32_ones(value, at_once):
    """1,000 coordinates: norms of .316, whose square float16 loses, and of 9,500,
    whose square it has not; 30 rows of them add up beyond what it has."""
    client = defenses.dp_sgd(_constant(value), 0.05, 0.0, examples_at_once=at_once)
    update = shared(client, {"a": jnp.zeros(1000, jnp.float16)}, jnp.ones((30, 1)))
    assert update["a"].dtype == jnp.float16
    found = np.asarray(update["a"], np.float64)
    np.testing.assert_allclose(found, 0.05 / 1000**0.5, rtol=1e-3)
