"""Rounds: conservation laws, optax on the mean update, and what becomes of NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

from invertjax import clients, defenses, federated

M, POPULATION = 3, 5
GRADIENT = clients.gradient(toy.loss_fn)
HONEST = federated.honest(GRADIENT)
REFERENCE = jax.jit(jax.grad(toy.loss_fn))
IDS, WEIGHTS = jnp.array([3, 0, 4]), jnp.array([1.0, 2.0, 5.0])


@pytest.fixture(scope="module")
def params():
    return toy.init(0)


def data(seed=1, rows=4):
    """`[M, rows, ...]`."""
    batch = toy.batch(seed, size=M * rows)
    return jax.tree.map(lambda x: x.reshape(M, rows, *x.shape[1:]), batch)


def assert_close(actual, expected, relative=1e-5):
    """Every leaf to `relative` of its largest entry, or of 1.

    Float32 in another order differs by some eps of 1.2e-7; other weights by 1e-2.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(e))))
        np.testing.assert_allclose(a, e, rtol=0, atol=relative * scale)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def start(round, params):
    return round.init(jax.random.key(8), params, POPULATION)


def take(round, state, data, *, ids=IDS, weights=WEIGHTS, seed=9):
    return jax.jit(round.step)(jax.random.key(seed), state, data, ids, weights)


# Conservation laws


def test_a_round_of_fedsgd_is_a_step_on_the_union(params):
    """Equal weights; so also what `averaged` shares, to rounding."""
    round = federated.make([(HONEST, M)], server=optax.sgd(0.5))
    state, _, _ = take(round, start(round, params), data(), weights=jnp.ones(M))
    union = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data())
    gradient = REFERENCE(params, union)
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient))
    one = federated.averaged(GRADIENT, M)
    assert_close(jax.jit(one)(params, union, jax.random.key(0)), gradient)


def test_fedavg_of_one_client_is_local_training(params):
    optimizer = optax.sgd(0.2, momentum=0.9)
    client = clients.local_sgd(toy.loss_fn, optimizer, steps=3, batch_size=2)
    round = federated.make([(federated.honest(client), 1)])
    one = jax.tree.map(lambda x: x[:1], data(rows=6))
    state, _, _ = take(
        round, start(round, params), one, ids=IDS[:1], weights=WEIGHTS[:1]
    )
    trained, moments = params, optimizer.init(params)
    for i in range(3):
        mini = jax.tree.map(lambda x, i=i: x[0, 2 * i : 2 * i + 2], one)
        grads = REFERENCE(trained, mini)
        delta, moments = optimizer.update(grads, moments, trained)
        trained = optax.apply_updates(trained, delta)
    assert_close(state.params, trained)
    assert_equal(state.previous, params)


def _seen(updates, weights):
    key = jax.random.key(0)
    return federated.Seen({}, {}, updates, jnp.array(weights), jnp.int32(0), key)


def test_the_mean_of_integers_is_exact():
    updates = {"leaf": jnp.array([[1.0, 8.0], [-2.0, 0.0], [3.0, 4.0], [0.0, -6.0]])}
    weights = [3, 1, 4, 8]
    seen = _seen(updates, weights)
    expected = [(3 - 2 + 12) / 16, (24 + 16 - 48) / 16]
    np.testing.assert_array_equal(federated.mean(seen)["leaf"], expected)


def test_rows_of_weight_zero_do_not_count():
    updates = {"leaf": jnp.array([[1.0], [jnp.nan], [jnp.inf]], jnp.bfloat16)}
    for weights, expected in (([3.0, 0.0, 0.0], 1.0), ([0.0, 0.0, 0.0], 0.0)):
        seen = _seen(updates, weights)
        assert federated.mean(seen)["leaf"] == jnp.array([expected])
        assert federated.mean(seen)["leaf"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "server",
    [optax.sgd(1.0), optax.sgd(1.0, momentum=0.9), optax.adam(0.01, eps=1e-3)],
    ids=["fedavg", "fedavgm", "fedadam"],
)
def test_the_server_is_optax_on_the_mean_update(params, server):
    """By hand, over three rounds, with weights 1, 2, 5 of 8."""
    round = federated.make([(HONEST, M)], server=server)
    state, by_hand, moments = start(round, params), params, server.init(params)
    step = jax.jit(round.step)
    for i in range(3):
        state, _, log = step(jax.random.key(9), state, data(i), IDS, WEIGHTS)
        update = optax.tree.zeros_like(params)
        for c, weight in enumerate((1, 2, 5)):
            batch = jax.tree.map(lambda x, c=c: x[c], data(i))
            gradient = REFERENCE(by_hand, batch)
            update = optax.tree.add_scale(update, weight / 8, gradient)
        delta, moments = server.update(update, moments, by_hand)
        by_hand = optax.apply_updates(by_hand, delta)
        assert (log.round, log.dropped, log.weight) == (i, 0, 8)
    assert_close(state.params, by_hand)
    assert state.round == 3


def test_secure_mean_takes_the_same_step():
    def behaviour(view):
        return {"leaf": jax.random.normal(view.key, (50,))}

    after = []
    for aggregate in (federated.mean, federated.secure_mean()):
        round = federated.make([(behaviour, M)], aggregate=aggregate)
        state = start(round, {"leaf": jnp.zeros(50)})
        after.append(take(round, state, data())[0].params)
    # three roundings of 2^-25 each, and those of float32
    assert_close(after[1], after[0], 5e-7)


def test_averaged_splits_rows_and_keys():
    def client(params, batch, key):
        return batch.sum() + params * jax.random.normal(key, (20_000,))

    batch = jnp.arange(6.0)
    plain = federated.averaged(client, 3)(0.0, batch, jax.random.key(0))
    np.testing.assert_array_equal(plain, np.full(20_000, 5.0))  # (1 + 5 + 9) / 3
    noisy = federated.averaged(client, 3)(1.0, batch, jax.random.key(0))
    # one key for all would give 1; 1% is two deviations of 20,000 draws
    assert noisy.std() == pytest.approx(3**-0.5, rel=0.02)
    with pytest.raises(ValueError, match="rows=6 to be a multiple of count=4"):
        federated.averaged(client, 4)(0.0, batch, jax.random.key(0))
    with pytest.raises(ValueError, match="count=0 >= 1"):
        federated.averaged(client, 0)


def test_averaged_weighs_as_the_server_does(params):
    """Weights 1, 2, 5: what `mean` makes of a round."""
    round = federated.make([(HONEST, M)])
    state, _, _ = take(round, start(round, params), data())
    union = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data())
    one = federated.averaged(GRADIENT, M, WEIGHTS)
    update = jax.jit(one)(params, union, jax.random.key(0))
    assert_close(update, optax.tree.sub(params, state.params))
    plain = REFERENCE(params, union)
    assert optax.tree.norm(optax.tree.sub(update, plain)) > 1e-2
    with pytest.raises(ValueError, match=r"weights of shape \(2,\) to be \(3,\)"):
        federated.averaged(GRADIENT, M, WEIGHTS[:2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("weight", [None, 1.0, 7e4, 1e38])
def test_means_of_any_dtype_and_weights(dtype, weight):
    """Members share 256 times their row: sums of float16 overflow from 65,504 on."""

    def client(params, batch, key):
        return {"leaf": jnp.full(2, 256 * batch.sum(), dtype)}

    rows = jnp.array([200.0, 100.0, 100.0, 160.0])  # 51,200, 25,600 and 40,960
    weights = None if weight is None else weight * np.array([1, 0, 1, 2], np.float32)
    expected = 256 * (140.0 if weight is None else (200 + 100 + 320) / 4)
    found = federated.averaged(client, 4, weights)({}, rows, jax.random.key(0))["leaf"]
    assert found.dtype == dtype
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=rounding)
    if weights is not None:
        updates = {"leaf": jnp.stack([client({}, row, None)["leaf"] for row in rows])}
        seen = federated.mean(_seen(updates, weights))["leaf"]
        assert seen.dtype == dtype
        np.testing.assert_allclose(np.asarray(seen, float), expected, rtol=rounding)


# Casts


def _constant(value):
    return lambda view: optax.tree.full_like(view.params, value)


@pytest.mark.parametrize("map", ["vmap", "map"])
def test_a_cast_plays_in_its_order(params, map):
    cast = [(_constant(1.0), 1), (HONEST, 1), (_constant(3.0), 1)]
    round = federated.make(cast, clients_map=map)
    _, seen, _ = take(round, start(round, params), data())
    assert jax.tree.leaves(seen.updates)[0].shape[0] == M
    for row, value in ((0, 1.0), (2, 3.0)):
        assert all(jnp.all(u[row] == value) for u in jax.tree.leaves(seen.updates))
    second = jax.tree.map(lambda x: x[1], data())
    expected = REFERENCE(params, second)
    assert_close(jax.tree.map(lambda u: u[1], seen.updates), expected)


def test_a_view_has_the_round_and_the_model_before(params):
    def behaviour(view):
        drift = jax.tree.map(lambda p, q: p - q + 1.0, view.params, view.previous)
        return jax.tree.map(lambda d: d + view.round.astype(d.dtype), drift)

    round = federated.make([(behaviour, M)])
    state, step = start(round, params), jax.jit(round.step)
    shared = []
    for _ in range(3):
        state, seen, _ = step(jax.random.key(9), state, data(), IDS, WEIGHTS)
        shared.append(float(seen.updates["last"]["bias"][0, 0]))
    # drift 0, then minus the update before: 1, 1 - 1 + 1, 1 - 1 + 2
    np.testing.assert_allclose(shared, [1, 1, 2], atol=1e-5)


# Noise


def noisy(key):
    return optax.chain(defenses.clip(1.0), defenses.gaussian_noise(key, 0.1))


def silent(view):
    """Draws of its own, too small to show beside those of the defense."""
    scale = 1e-6 * jax.random.normal(view.key, ())
    return jax.tree.map(lambda p: jnp.zeros_like(p) + scale, view.params)


@pytest.mark.parametrize("map", ["vmap", "map"])
def test_noise_differs_between_clients_and_rounds(map):
    big = {"leaf": jnp.zeros(20_000)}
    round = federated.make([(silent, 2), (silent, 1)], defense=noisy, clients_map=map)
    state, step = start(round, big), jax.jit(round.step)

    def draws(state, seed=9):
        after, seen, _ = step(jax.random.key(seed), state, data(), IDS, WEIGHTS)
        return after, seen.updates["leaf"]

    after, first = draws(state)
    _, second = draws(after)
    # the client in another place, beside others, in the same round
    moved = step(jax.random.key(9), state, data(), IDS[::-1], WEIGHTS)[1].updates
    _, other = draws(state, seed=10)
    rows = np.concatenate([first, second, other])
    # 20,000 draws: correlation 0 +- .007, one draw used twice has 1
    assert np.abs(np.corrcoef(rows) - np.eye(9)).max() < 0.05
    np.testing.assert_allclose(rows.std(axis=1), 0.1, rtol=0.03)
    np.testing.assert_array_equal(first, draws(state)[1])
    np.testing.assert_array_equal(moved["leaf"], first[::-1])


def test_behaviour_and_defense_have_keys_of_their_own():
    """Noise of both from one key would cancel here."""

    def behaviour(view):
        return {"leaf": -jax.random.normal(view.key, (20_000,))}

    def defense(key):
        return optax.stateless_with_tree_map(
            lambda leaf, _: leaf + jax.random.normal(key, (20_000,))
        )

    round = federated.make([(behaviour, M)], defense=defense)
    _, seen, _ = take(round, start(round, {"leaf": jnp.zeros(20_000)}), data())
    stds = seen.updates["leaf"].std(axis=1)
    np.testing.assert_allclose(stds, np.sqrt(2), rtol=0.03)


# The state of a defense


def halves(key):
    """Shares half of what it holds back and keeps the rest; draws, but to no effect."""

    def init(params):
        return {"rest": optax.tree.zeros_like(params), "key": key}

    def update(updates, state, params=None):
        whole = optax.tree.add(updates, state["rest"])
        half = optax.tree.scale(0.5, whole)
        return half, {"rest": half, "key": jax.random.split(state["key"])[0]}

    return optax.GradientTransformation(init, update)


def test_state_lives_with_the_client():
    round = federated.make([(_constant(1.0), 2)], defense=halves)
    state, step = start(round, {"leaf": jnp.zeros(3)}), jax.jit(round.step)
    batch = jax.tree.map(lambda x: x[:2], data())
    shared = []
    for ids in ([0, 1], [1, 4], [4, 1]):
        state, seen, _ = step(
            jax.random.key(9), state, batch, jnp.array(ids), jnp.ones(2)
        )
        shared.append(seen.updates["leaf"][:, 0])
    # a client's nth time: 1 - 2^-n
    np.testing.assert_array_equal(shared, [[0.5, 0.5], [0.75, 0.5], [0.75, 0.875]])
    rest = state.defense_state["rest"]["leaf"][:, 0]
    np.testing.assert_array_equal(rest, [0.5, 0.875, 0, 0, 0.75])
    assert state.defense_state["key"] is None


def test_state_of_a_stateless_defense_costs_nothing(params):
    for defense in (None, noisy):
        round = federated.make([(HONEST, M)], defense=defense)
        assert not jax.tree.leaves(start(round, params).defense_state)


# What is not finite


def _given(view):
    """One coordinate is what the data says."""
    return {
        "leaf": jnp.array([1.0, 1.0]).at[0].set(view.data["value"]),
        "sound": jnp.ones(2),
    }


FLAT = {"leaf": jnp.zeros(2), "sound": jnp.zeros(2)}


def _values(*values):
    return {"value": jnp.array(values)}


@pytest.mark.parametrize("aggregate", [federated.mean, federated.secure_mean()])
def test_a_client_that_is_not_finite_is_dropped(aggregate):
    round = federated.make([(_given, M)], defense=halves, aggregate=aggregate)
    step = jax.jit(round.step)
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        state = start(round, FLAT)
        for second, dropped, weight in ((value, 1, 6), (1.0, 0, 8)):
            data = _values(1.0, second, 1.0)
            state, seen, log = step(jax.random.key(9), state, data, IDS, WEIGHTS)
            assert (log.dropped, log.weight) == (dropped, weight)
        # 1/2 in round one; then 3/4, 1/2 (state as it was), 3/4, weighing 1, 2, 5
        moved = -(0.5 + (0.75 * 6 + 0.5 * 2) / 8)
        for leaf in jax.tree.leaves(state.params):
            np.testing.assert_allclose(leaf, np.full(2, moved), rtol=1e-6)
        np.testing.assert_array_equal(seen.weights, WEIGHTS)


def test_a_defense_does_not_hide_what_is_not_finite():
    def defense(key):
        return optax.stateless(lambda updates, _: optax.tree.ones_like(updates))

    round = federated.make([(_given, M)], defense=defense)
    _, seen, log = take(round, start(round, FLAT), _values(jnp.nan, 1.0, 1.0))
    assert log.dropped == 1
    np.testing.assert_array_equal(seen.weights, [0.0, 2.0, 5.0])


def test_without_clients_nothing_moves_but_the_round():
    server = optax.adam(0.1)
    round = federated.make([(_given, M)], defense=halves, server=server)
    step = jax.jit(round.step)

    def after(state, value):
        data = _values(value, value, value)
        return step(jax.random.key(9), state, data, IDS, WEIGHTS)

    before, _, _ = after(start(round, FLAT), 1.0)
    still, seen, log = after(before, jnp.nan)
    assert (log.round, log.dropped, log.weight) == (1, M, 0)
    assert jnp.isnan(seen.updates["leaf"][:, 0]).all()  # as they were sent
    assert still.round == 2
    for name in ("params", "server_state", "defense_state"):
        assert_equal(getattr(still, name), getattr(before, name))
    assert_equal(still.previous, before.params)
    later, _, log = after(still, 1.0)
    assert log.dropped == 0
    assert jnp.all(later.params["leaf"] < still.params["leaf"])


# Programs


@functools.cache
def _run(map):
    """Everything with a state or a key: momentum, error feedback, noise, sampling."""
    rng = np.random.default_rng(0)
    dataset = {"x": rng.normal(size=(40, 3)), "label": rng.integers(3, size=40)}
    partition = federated.dirichlet(dataset["label"], POPULATION, 1.0, 0, least=2)
    plan = functools.partial(
        federated.plan, partition=partition, count=M, steps=2, batch_size=3, seed=0
    )

    def loss_fn(params, batch):  # as small as can be: quick to compile
        return jnp.mean((batch["x"] @ params["leaf"] - batch["label"]) ** 2)

    client = clients.local_sgd(loss_fn, optax.sgd(0.1), steps=2, batch_size=3)

    def defense(key):
        noise_key, key = jax.random.split(key)
        return optax.chain(halves(key), defenses.gaussian_noise(noise_key, 1e-3))

    server = optax.sgd(0.5, momentum=0.9)
    cast = [(federated.honest(client), 2), (_constant(1e-3), 1)]
    round = federated.make(cast, defense=defense, server=server, clients_map=map)

    @jax.jit
    def scan(key, state, plan):
        return federated.scan(key, round, state, dataset, plan)

    def run(state, rounds):
        return scan(jax.random.key(9), state, plan(rounds))

    return start(round, {"leaf": jnp.zeros(3)}), run


def test_resumed_rounds_are_those_of_one_run():
    state, run = _run("vmap")
    whole, logs = run(state, range(4))
    half, first = run(state, range(2))
    resumed, second = run(half, range(2, 4))
    assert_equal(resumed, whole)
    assert_equal(jax.tree.map(lambda *x: jnp.concatenate(x), first, second), logs)
    np.testing.assert_array_equal(logs.round, range(4))
    again, _ = run(half, range(2))  # other examples
    assert optax.tree.norm(optax.tree.sub(again.params, whole.params)) > 1e-3


def test_map_equals_vmap():
    after = []
    for name in ("vmap", "map"):
        state, run = _run(name)
        after.append(run(state, range(4))[0])
    assert_close(after[0].params, after[1].params)
    assert_close(after[0].defense_state, after[1].defense_state)


def test_a_round_compiles_once(params):
    traces = []

    def behaviour(view):
        traces.append(1)
        return HONEST(view)

    server = optax.adam(0.01)
    round = federated.make([(behaviour, M)], defense=noisy, server=server)
    state, step = start(round, params), jax.jit(round.step)
    for i in range(3):
        state, _, _ = step(jax.random.key(i), state, data(i), IDS, WEIGHTS * (i + 1))
    assert len(traces) == 1


def test_strengths_are_an_axis():
    """A sweep over noise is one program, defenses with state included."""

    def after(scale):
        def defense(key):
            noise_key, key = jax.random.split(key)
            noise = defenses.gaussian_noise(noise_key, scale)
            return optax.chain(halves(key), noise)

        round = federated.make([(_constant(1.0), M)], defense=defense)
        state = start(round, {"leaf": jnp.zeros(20_000)})
        state, _, _ = round.step(jax.random.key(9), state, data(), IDS, WEIGHTS)
        return state.params["leaf"]

    quiet, faint, loud = jax.jit(jax.vmap(after))(jnp.array([0.0, 0.1, 1.0]))
    np.testing.assert_array_equal(quiet, np.full(20_000, -0.5))
    # of the weighted mean of three: sqrt(1 + 4 + 25) / 8; 2% is four deviations
    assert (loud - quiet).std() == pytest.approx(30**0.5 / 8, rel=0.02)
    np.testing.assert_allclose(faint - quiet, 0.1 * (loud - quiet), atol=1e-6)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: federated.make([]), r"counts=\[\] of the cast"),
        (lambda: federated.make([(HONEST, 2), (HONEST, 0)]), r"counts=\[2, 0\]"),
        (
            lambda: federated.make([(HONEST, 2)], clients_map="loop"),
            "clients_map='loop' .* vmap, map",
        ),
    ],
)
def test_casts_and_maps_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_clients_of_a_round_are_as_many_as_the_cast(params):
    round = federated.make([(HONEST, M)])
    with pytest.raises(ValueError, match=r"\[\(2,\), \(3,\)\] .* \(3,\), the clients"):
        take(round, start(round, params), data(), ids=IDS[:2])
