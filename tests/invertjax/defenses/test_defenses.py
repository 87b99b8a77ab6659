"""Defenses: one table of what holds for all, then a closed form for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invertjax import defenses


def _keyed(build):
    return lambda strength: lambda key: build(key, strength)


def _keyless(build):
    return lambda strength: lambda key: build(strength)


# name: (strength -> defense, strengths in range)
_DEFENSES = {
    "gaussian_noise": (_keyed(defenses.gaussian_noise), (0.01, 0.1, 1.0)),
    "laplace_noise": (_keyed(defenses.laplace_noise), (0.01, 0.1, 1.0)),
    "orthogonal_noise": (_keyed(defenses.orthogonal_noise), (0.1, 1.0, 10.0)),
    "outpost": (_keyed(defenses.outpost), (0.1, 0.4, 0.8)),
    "clip": (_keyless(defenses.clip), (0.1, 1.0, 100.0)),
    "clip_layers": (_keyless(defenses.clip_layers), (0.1, 1.0, 100.0)),
    "drop": (_keyless(defenses.drop), (0.0, 1.0, 2.0)),
    "prune": (_keyless(defenses.prune), (0.0, 0.5, 0.9)),
    "prune_whole": (
        _keyless(functools.partial(defenses.prune, whole=True)),
        (0.0, 0.5, 0.9),
    ),
    "sparsify": (_keyed(defenses.sparsify), (0.0, 0.5, 1.0)),
    "quantise": (_keyless(defenses.quantise), (2.0, 4.0, 8.0)),
    "stochastic_quantise": (_keyed(defenses.stochastic_quantise), (2.0, 4.0, 8.0)),
    "error_feedback": (
        _keyless(lambda share: defenses.error_feedback(defenses.prune(share))),
        (0.0, 0.5, 0.9),
    ),
    "sign": (_keyless(lambda strength: defenses.sign()), (1.0, 2.0, 3.0)),
}
_ALL = pytest.mark.parametrize("name", _DEFENSES)


def _update(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "layer": {
            "kernel": jnp.asarray(rng.normal(size=(7, 5)), dtype),
            "bias": jnp.asarray(rng.normal(size=5), dtype),
        },
        "scale": jnp.asarray(0.3, dtype),
        "dead": jnp.zeros(5, dtype),
    }


def _apply(transform, updates):
    return transform.update(updates, transform.init(updates), updates)[0]


def _one(array):
    return {"leaf": jnp.asarray(array, jnp.float32)}


# Every defense


@_ALL
def test_keeps_structure_shape_and_dtype(name):
    """And does to numbers of bfloat16 what it does to the same ones in float32."""
    build, strengths = _DEFENSES[name]
    updates = _update(jnp.bfloat16)  # any other type is promoted by a careless product
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), updates)
    expected = _apply(build(strengths[1])(jax.random.key(0)), wide)
    for strength in (strengths[1], jnp.float32(strengths[1])):
        shared = _apply(build(strength)(jax.random.key(0)), updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_equal(
                (a.shape, a.dtype), (b.shape, b.dtype)
            ),
            shared,
            updates,
        )
        for found, exact in zip(*map(jax.tree.leaves, (shared, expected)), strict=True):
            largest = float(np.abs(exact).max())  # two roundings, of 8 bits each
            np.testing.assert_allclose(
                found.astype(jnp.float32), exact, rtol=2**-7, atol=2**-7 * largest
            )
    assert jax.tree.structure(shared) == jax.tree.structure(updates)


@_ALL
def test_one_program_for_many_strengths_and_keys(name):
    """`vmap` under `jit`, inside `optax.chain`, equals a loop without either."""
    build, strengths = _DEFENSES[name]
    updates, traces = _update(), []

    @jax.jit
    @jax.vmap
    def sweep(strength, seed):
        traces.append(name)
        key = jax.random.key(seed)
        return _apply(optax.chain(build(strength)(key), optax.scale(2.0)), updates)

    swept = sweep(jnp.array(strengths), jnp.arange(3))
    sweep(jnp.array(strengths) * 1.01, jnp.arange(3) + 1)
    assert traces == [name]
    for i, strength in enumerate(strengths):
        single = _apply(build(strength)(jax.random.key(i)), updates)
        # a fused program may round once where the loop rounds twice
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(
                a[i], 2 * b, rtol=1e-5, atol=1e-6
            ),
            swept,
            single,
        )


@_ALL
def test_changes_an_update_and_can_be_differentiated(name):
    build, strengths = _DEFENSES[name]
    updates = _update()

    def total(scale):
        scaled = jax.tree.map(lambda leaf: scale * leaf, updates)
        transform = build(strengths[1])(jax.random.key(0))
        return optax.tree.sum(_apply(transform, scaled))

    shared = _apply(build(strengths[1])(jax.random.key(0)), updates)
    assert optax.tree.norm(optax.tree.sub(shared, updates)) > 1e-3
    slope = jax.jit(jax.grad(total))
    # scale 0 is the zero update: no root or quotient there may have an infinite slope
    for scale in (0.0, 1.0):
        assert jnp.isfinite(slope(scale))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: defenses.gaussian_noise(jax.random.key(0), -1.0), "stddev=-1.0 >= 0"),
        (lambda: defenses.laplace_noise(jax.random.key(0), -0.1), "scale=-0.1 >= 0"),
        (lambda: defenses.orthogonal_noise(jax.random.key(0), -1), "strength=-1 >= 0"),
        (lambda: defenses.outpost(jax.random.key(0), -1), "scale=-1 >= 0"),
        (lambda: defenses.outpost(jax.random.key(0), 1, step=-1), "step=-1 >= 0"),
        (lambda: defenses.outpost(jax.random.key(0), 1, beta=-1), "beta=-1 >= 0"),
        (lambda: defenses.outpost(jax.random.key(0), 1, noisy=2), "noisy=2 <= 1"),
        (lambda: defenses.outpost(jax.random.key(0), 1, pruned=2), "pruned=2 <= 1"),
        (lambda: defenses.clip(0.0), "max_norm=0.0 > 0"),
        (lambda: defenses.clip_layers(0.0), "max_norm=0.0 > 0"),
        (lambda: defenses.drop(-1), "count=-1 >= 0"),
        (lambda: defenses.sparsify(jax.random.key(0), 1.1), "share=1.1 <= 1"),
        (lambda: defenses.stochastic_quantise(jax.random.key(0), 1), "bits=1 >= 2"),
        (lambda: defenses.clip(float("nan")), "max_norm=nan > 0"),
        (lambda: defenses.prune(-0.1), "share=-0.1 >= 0"),
        (lambda: defenses.prune(1.1), "share=1.1 <= 1"),
        (lambda: defenses.quantise(1), "bits=1 >= 2"),
        (lambda: defenses.quantise(33), "bits=33 <= 32"),
    ],
)
def test_ranges(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Noise

_NOISES = {
    "gaussian": (defenses.gaussian_noise, 1.0, 3.0),
    "laplace": (defenses.laplace_noise, np.sqrt(2), 6.0),
}


@pytest.mark.parametrize("name", _NOISES)
@pytest.mark.parametrize("strength", [0.02, 3.0])
def test_noise_has_its_scale_and_shape(name, strength):
    noise, deviations, kurtosis = _NOISES[name]
    clean = jnp.full(200_000, 0.5)
    draw = _apply(noise(jax.random.key(0), strength), clean) - 0.5
    std, mean = float(draw.std()), float(draw.mean())
    expected = deviations * strength
    # relative deviation of a standard deviation from n draws: sqrt((kurtosis-1)/4n),
    # .0016 and .0025 here; 1% is four of them
    assert std == pytest.approx(expected, rel=0.01)
    for wrong in (2 / 3, 3 / 2):
        assert std != pytest.approx(wrong * expected, rel=0.01)
    assert abs(mean) < 4 * expected / np.sqrt(draw.size)
    # tells the two apart: 3 against 6, +- .25 for the heavier tail
    assert jnp.mean((draw / std) ** 4) == pytest.approx(kurtosis, rel=0.1)


def _correlation(a, b):
    return abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.mark.parametrize("name", _NOISES)
def test_noise_is_drawn_anew_for_leaves_calls_and_clients(name):
    noise = _NOISES[name][0]
    # 20,000 draws: correlation 0 +- .007, one draw used twice has 1
    zeros = {"a": jnp.zeros((100, 200)), "b": jnp.zeros((100, 200))}
    transform = noise(jax.random.key(0), 0.1)
    first, state = transform.update(zeros, transform.init(zeros))
    second, _ = transform.update(zeros, state)
    other = _apply(noise(jax.random.key(1), 0.1), zeros)
    for draw in (first["b"], second["a"], second["b"], other["a"]):
        assert _correlation(first["a"], draw) < 0.05
    again = _apply(noise(jax.random.key(0), 0.1), zeros)
    np.testing.assert_array_equal(first["a"], again["a"])


# Clipping


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 1e6])
def test_clip_bounds_the_norm_of_the_whole_tree(max_norm):
    updates = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[12.0], [4.0]])}  # norm 13
    shared = _apply(defenses.clip(max_norm), updates)
    expected = min(13.0, max_norm)
    assert optax.tree.norm(shared) == pytest.approx(expected, rel=1e-6)
    reference = _apply(optax.clip_by_global_norm(max_norm), updates)
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_clip_leaves_shorter_updates_bit_identical():
    updates = _update()
    shared = _apply(defenses.clip(1e3), updates)
    jax.tree.map(np.testing.assert_array_equal, shared, updates)


# Pruning


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.9, 0.99, 0.999, 1.0])
def test_prune_zeroes_its_exact_share_of_every_leaf(share):
    rng = np.random.default_rng(0)
    updates = {"a": rng.normal(size=(40, 25)), "b": rng.normal(size=10)}
    updates = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), updates)
    shared = _apply(defenses.prune(share), updates)
    for name, size in (("a", 1000), ("b", 10)):
        leaf, before = np.asarray(shared[name]), np.asarray(updates[name])
        zero = leaf == 0
        assert zero.sum() == round(share * size)
        np.testing.assert_array_equal(leaf[~zero], before[~zero])
        if 0 < zero.sum() < size:
            assert np.abs(before[zero]).max() < np.abs(before[~zero]).min()


def test_prune_breaks_ties_by_position():
    shared = _apply(defenses.prune(0.5), _one([[2.0, -1.0, 1.0], [1.0, -1.0, 1.0]]))
    np.testing.assert_array_equal(shared["leaf"], [[2, 0, 0], [0, -1, 1]])
    equal = _apply(defenses.prune(0.75), _one(np.ones(100)))
    np.testing.assert_array_equal(equal["leaf"], np.arange(100) >= 75)


# Quantisation and signs


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantise_has_its_levels_and_error(bits):
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    shared = np.asarray(_apply(defenses.quantise(bits), _one(values))["leaf"])
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    # half a step, and float32 rounding of the values themselves
    assert np.abs(shared - values).max() <= step / 2 + 1e-6
    if bits < 16:
        assert np.abs(shared - values).max() > 0.4 * step
    whole = shared / step
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-6 * 2**bits)
    if bits <= 8:  # then 5000 draws reach most levels: no coarser, no finer
        reached = len(np.unique(shared))
        assert 0.6 * (2**bits - 1) < reached <= 2**bits - 1
    again = _apply(defenses.quantise(bits), _one(shared))["leaf"]
    np.testing.assert_allclose(again, shared, rtol=1e-6)  # levels are 3e-5 apart


def test_quantise_keeps_the_largest_and_takes_one_scale_a_leaf():
    updates = {"large": jnp.array([-8.0, 4.1, 0.1]), "small": jnp.array([0.1, 0.06])}
    shared = _apply(defenses.quantise(3), updates)  # levels -3 to 3
    np.testing.assert_allclose(shared["large"], [-8, 16 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(shared["small"], [0.1, 0.2 / 3], rtol=1e-6)


def test_quantise_at_32_bits_is_float32():
    updates = _update()
    shared = _apply(defenses.quantise(32), updates)
    # some roundings of float32; at 16 bits they would be off by 1e-5 and more
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), shared, updates
    )


def test_sign():
    shared = _apply(defenses.sign(), _one([-3.0, 0.0, 1e-30]))
    np.testing.assert_array_equal(shared["leaf"], [-1, 0, 1])


# Narrow types


_DRAWN = ("gaussian_noise", "laplace_noise", "orthogonal_noise", "outpost")


@pytest.mark.parametrize("name", _DRAWN)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_is_that_of_float32_rounded_once(name, dtype):
    """On updates and params that both types hold: nothing else is rounded."""
    build = _DEFENSES[name][0](0.3)
    updates = {"leaf": jnp.asarray(np.arange(-512, 512) / 256, jnp.float32)}
    wide = _apply(build(jax.random.key(0)), updates)["leaf"]
    narrow = {"leaf": updates["leaf"].astype(dtype)}
    exact = narrow["leaf"].astype(jnp.float32) == updates["leaf"]
    found = _apply(build(jax.random.key(0)), narrow)["leaf"]
    assert found.dtype == dtype
    if name in ("gaussian_noise", "laplace_noise"):  # coordinate by coordinate
        np.testing.assert_array_equal(found[exact], wide.astype(dtype)[exact])
        assert exact.sum() > 300
    # The others depend on norms and variances of what was rounded, by 1e-3 of them.
    error = np.abs(np.asarray(found, np.float64) - np.asarray(wide, np.float64))
    assert np.quantile(error, 0.99) < 4 * jnp.finfo(dtype).eps
    noise = np.asarray(wide - updates["leaf"], np.float64)
    assert np.abs(noise[noise != 0]).max() > 0.1


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("value", [3e-4, 0.01, 1.0, 300.0, 1e4])
def test_clip_bounds_the_norm_in_every_dtype(value, dtype, layers):
    """1,000 coordinates: squares of all these but 1 and .01 are out of float16's
    range. What is rounded is rounded down: bfloat16 left 1.004 at a bound of 1."""
    clip = (defenses.clip_layers if layers else defenses.clip)(0.3 * value)
    updates = {"leaf": value * (1 + 0.5 * jnp.sin(jnp.arange(1000.0)))}
    updates = jax.tree.map(lambda leaf: leaf.astype(dtype), updates)
    shared = _apply(clip, updates)["leaf"]
    assert shared.dtype == dtype
    norm = np.linalg.norm(np.asarray(shared, np.float64)) / (0.3 * value)
    rounding = {"bfloat16": 2**-7, "float16": 2**-9, "float32": 1e-6}[dtype]
    if dtype == "float16" and value == 3e-4:  # below 6e-5, in steps of 6e-8
        rounding = 0.03
    assert 1 - rounding < norm < 1 + 1e-6


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e20, 1e25])
def test_clip_and_orthogonal_noise_at_any_scale(scale):
    values = np.linspace(-1, 1, 101, dtype=np.float32)
    length, updates = (
        float(np.linalg.norm(values)),
        {"leaf": jnp.asarray(scale * values)},
    )

    def clipped(bound):
        transform = defenses.clip(bound)
        slope = jax.grad(lambda u: jnp.sum(_apply(transform, u)["leaf"] / scale))
        return _apply(transform, updates)["leaf"], slope(updates)["leaf"]

    for bound in (0.1 * scale, 100 * scale, 1e30):
        shared, slope = clipped(bound)
        expected = values * min(1, bound / (length * scale))
        np.testing.assert_allclose(shared / scale, expected, rtol=1e-5, atol=1e-7)
        assert np.all(np.isfinite(slope))
    noisy = _apply(defenses.orthogonal_noise(jax.random.key(0), 1.0), updates)["leaf"]
    added = np.asarray(noisy, np.float64) / scale - values
    assert np.linalg.norm(added) == pytest.approx(length, rel=1e-4)
    assert abs(added @ values) < 1e-4


def test_clip_in_narrow_types_has_the_slope_of_a_cast():
    """Rounding down is no jump to derivatives: of c x / |x| along x it is 0."""
    leaf = jnp.array([3.0, 4.0], jnp.bfloat16)
    clip = defenses.clip(1.0)
    slope = jax.grad(lambda x: _apply(clip, {"leaf": x})["leaf"][0])(leaf)
    exact = [16 / 125, -12 / 125]
    np.testing.assert_allclose(np.asarray(slope, np.float64), exact, atol=2e-3)
