"""The one optimisation loop, on functions whose minimum is known, and on a network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

from invertjax import candidates, clients, distances, driver, matching, priors
from invertjax.attacks.inverting_gradients import step_decay
from invertjax.base import Candidate, Stop

KEY = functools.partial(jax.random.key, 0)


def starting_at(z, project=lambda z: z):
    return Candidate(lambda key: z, lambda z: z, project)


def finish(attack, key, steps=None):
    state = attack.init(key)
    return attack.result(
        attack.advance(state, attack.steps if steps is None else steps)
    )


def quadratic(z, t):
    """Minimum 0 at image = 1/2, logits = -2; curvatures 2 and 10."""
    del t
    return jnp.sum((z["image"] - 0.5) ** 2) + 5 * jnp.sum((z["logits"] + 2) ** 2)


@pytest.mark.parametrize(
    "optimizer, tolerance",
    [
        (optax.sgd(0.15), 1e-5),  # contracts by 0.7 and 0.5 a step
        (optax.adam(optax.linear_schedule(0.3, 0.0, 150)), 1e-2),
        # Signed steps end within the last learning rates of the minimum.
        (
            optax.chain(optax.scale_by_sign(), optax.adam(step_decay(0.1, 150))),
            1e-2,
        ),
        (optax.lbfgs(memory_size=5), 1e-5),
    ],
    ids=["sgd", "adam", "signed adam", "lbfgs"],
)
def test_every_optimiser_goes_through_the_same_loop(optimizer, tolerance):
    start = {"image": jnp.array([[2.0, -1.0]]), "logits": jnp.array([1.0])}
    attack = matching.minimise(quadratic, starting_at(start), optimizer, steps=150)
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    np.testing.assert_allclose(result.batch["image"], 0.5, atol=tolerance)
    np.testing.assert_allclose(result.batch["logits"], -2, atol=tolerance)
    assert result.stopped == Stop.BUDGET
    assert result.steps == 150
    np.testing.assert_allclose(result.losses[0], quadratic(start, 0), rtol=1e-6)
    # The best iterate is held with its own loss.
    assert result.loss == result.losses.min()
    np.testing.assert_allclose(result.loss, quadratic(result.batch, 0), rtol=1e-6)


def test_the_best_iterate_is_returned_not_the_last():
    # Converges to 0 up to step 20 and is then blown up fivefold a step.
    rates = optax.piecewise_constant_schedule(0.25, {20: 12.0})
    attack = matching.minimise(
        lambda z, t: jnp.sum(z**2),
        starting_at(jnp.array([1.0])),
        optax.sgd(rates),
        steps=30,
    )
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    assert result.losses.argmin() == 20
    assert result.losses[-1] > 1e3 * result.loss
    np.testing.assert_allclose(result.batch, 0.5**20, rtol=1e-5)
    np.testing.assert_allclose(result.loss, 0.5**40, rtol=1e-5)


def rooted(z, t):
    """Minimum -1 at z = 1; neither value nor gradient are finite for z < 0."""
    del t
    return jnp.sum(z - 2 * jnp.sqrt(z))


@jax.jit
@jax.vmap
def trials(start, rate, steps_done):
    attack = matching.minimise(rooted, starting_at(start), optax.sgd(rate), steps=40)
    return finish(attack, KEY(), steps_done)


def test_a_trial_that_is_not_finite_stops_alone():
    # The second leaves the domain at its first step, the third starts outside of it.
    starts = jnp.array([3.0, 3.0, -1.0, 2.0])[:, None]
    results = trials(starts, jnp.array([0.5, 10.0, 0.5, 0.5]), jnp.full(4, 40))
    alive = [0, 3]
    ends = [Stop.BUDGET, Stop.NON_FINITE, Stop.NOTHING, Stop.BUDGET]
    np.testing.assert_array_equal(results.stopped, ends)
    np.testing.assert_array_equal(results.steps, [40, 1, 0, 40])
    # The value is -1 + (z - 1)^2 / 4, from terms of 1 and 2: what rounds by 2.4e-7
    # cannot tell z from 1 within 1e-3, whichever iterate is called the best.
    np.testing.assert_allclose(results.batch[jnp.array(alive)], 1, atol=5e-3)
    # What the stopped ones had: the start with its loss, and nothing at all.
    np.testing.assert_allclose(results.batch[1], 3)
    np.testing.assert_allclose(results.loss[1], 3 - 2 * np.sqrt(3), rtol=1e-5)
    assert results.loss[2] == jnp.inf
    np.testing.assert_array_equal(jnp.isinf(results.losses).sum(1), [0, 39, 40, 0])


def test_a_part_of_the_budget_reads_as_interrupted():
    done = jnp.array([0, 5, 40, 100])
    results = trials(jnp.full((4, 1), 3.0), jnp.full(4, 0.5), done)
    np.testing.assert_array_equal(results.steps, [0, 5, 40, 40])
    interrupted, budget = Stop.INTERRUPTED, Stop.BUDGET
    np.testing.assert_array_equal(
        results.stopped, [interrupted, interrupted, budget, budget]
    )
    np.testing.assert_array_equal(jnp.isinf(results.losses).sum(1), [40, 35, 0, 0])
    assert results.loss[0] == jnp.inf
    np.testing.assert_allclose(results.batch[0], 3)
    np.testing.assert_array_equal(results.losses[2], results.losses[3])


# An infinite gradient of a finite value: of the second, clipping makes a finite step.
INFINITE = {"step": optax.sgd(1.0), "clipped": optax.chain(optax.clip(1.0))}


@pytest.mark.parametrize("name", INFINITE)
def test_a_start_without_a_finite_gradient_is_no_result(name):
    attack = matching.minimise(
        lambda z, t: jnp.sum(jnp.sqrt(z)),
        starting_at(jnp.zeros(1)),
        INFINITE[name],
        steps=3,
    )
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    assert result.stopped == Stop.NOTHING and result.steps == 0
    assert result.loss == jnp.inf
    np.testing.assert_array_equal(result.batch, 0)


def test_a_gradient_that_is_not_finite_ends_at_the_best_so_far():
    """At 0 the value is 0 and the gradient infinite; a clipped one would go on."""
    attack = matching.minimise(
        lambda z, t: jnp.sum(jnp.sqrt(z)),
        starting_at(jnp.ones(1)),
        optax.chain(optax.clip(1.0), optax.sgd(2.0)),
        steps=3,
    )
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    assert result.stopped == Stop.NON_FINITE and result.steps == 1
    assert result.loss == 0
    np.testing.assert_array_equal(result.batch, 0)


def test_a_start_without_a_gradient_does_not_win_over_restarts_with_one():
    candidate = Candidate(jax.random.normal, lambda z: z, lambda z: z)

    def objective(z, t):  # zero on the left, where the gradient is not finite
        return jnp.sqrt(jnp.maximum(z, 0)) + jnp.where(z > 0, (z - 1) ** 2, 0)

    attack = matching.minimise(objective, candidate, optax.sgd(0.1), steps=9)
    found = driver.invert(jax.random.key(0), attack, restarts=8)
    assert found.stopped == Stop.BUDGET and found.batch > 0


def test_a_result_that_is_none_says_so():
    attack = matching.minimise(
        lambda z, t: jnp.sum(jnp.sqrt(z)),
        starting_at(jnp.zeros(1)),
        optax.sgd(1.0),
        steps=3,
    )
    with pytest.warns(UserWarning, match="no reconstruction"):
        driver.invert(KEY(), attack)


RISING = optax.linear_schedule(0.0, 4.0, 1)  # a weight that rises over the run


@pytest.mark.parametrize("name", ["attack", "minimise"])
def test_iterates_are_compared_at_the_weight_of_the_end(name):
    """With data z^2 and a prior (z - 1)^2 of weight 4 t it moves from 0 to 4/5."""
    adam, steps = optax.adam(0.1), 100
    start = starting_at(jnp.zeros(1))

    def prior(z, t):
        return jnp.sum(RISING(t) * (z - 1) ** 2)

    if name == "attack":
        attack = matching.attack(
            lambda z: z,
            jnp.zeros(1),
            start,
            optimizer=adam,
            steps=steps,
            distance=distances.squared,
            prior=prior,
        )
    else:
        attack = matching.minimise(
            lambda z, t: jnp.sum(z**2) + prior(z, t), start, adam, steps=steps
        )
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    assert result.losses.argmin() == 0  # of the objectives at the time
    assert result.batch == pytest.approx(0.8, abs=0.02)
    at_the_end = jnp.sum(result.batch**2 + 4 * (result.batch - 1) ** 2)
    assert result.loss == pytest.approx(float(at_the_end), rel=1e-6)


def test_a_rising_prior_costs_no_second_client():
    """The client is traced as often as without a prior: once to check, once a step."""

    def count(prior):
        calls = []

        def share(z):
            calls.append(z)
            return z

        attack = matching.attack(
            share,
            jnp.zeros(1),
            starting_at(jnp.ones(1)),
            optimizer=optax.sgd(0.1),
            steps=3,
            prior=prior,
        )
        jax.make_jaxpr(lambda key: finish(attack, key))(KEY())
        return len(calls)

    assert count(lambda z, t: RISING(t) * jnp.sum(z**2)) == count(priors.none)


def test_a_stopped_restart_does_not_poison_the_consensus():
    consistency = priors.group_consistency(0.1)

    def objective(z, t):
        return rooted(z["image"], t) + consistency(z, t)

    def one(start, rate):
        candidate = starting_at({"image": start[None]})
        return finish(
            matching.minimise(objective, candidate, optax.sgd(rate), steps=60), KEY()
        )

    together = jax.jit(jax.vmap(one, axis_name="restarts"))
    results = together(jnp.array([3.0, 3.0, 2.0]), jnp.array([0.5, 10.0, 0.5]))
    np.testing.assert_array_equal(results.stopped, [0, Stop.NON_FINITE, 0])
    # The stopped one rests at 3 and holds the mean of the three above 1.
    np.testing.assert_allclose(
        results.batch["image"].ravel(), [1.28, 3, 1.28], atol=0.1
    )


def test_priors_see_the_share_of_the_run():
    attack = matching.minimise(
        lambda z, t: t + 0 * jnp.sum(z),
        starting_at(jnp.zeros(1)),
        optax.sgd(0.1),
        steps=8,
    )
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    np.testing.assert_array_equal(result.losses, np.arange(8) / 8)


def test_line_search_values_are_not_reused_where_they_do_not_hold():
    # The line search ends near 2 + t, where the value is 0. The box takes the iterate
    # back to 1, and the next step's t is another: the value there is (1 + t)^2.
    attack = matching.minimise(
        lambda z, t: jnp.sum((z - 2 - t) ** 2),
        starting_at(jnp.zeros(1), lambda z: jnp.clip(z, 0, 1)),
        optax.lbfgs(memory_size=2),
        steps=4,
    )
    result = jax.jit(finish, static_argnums=0)(attack, KEY())
    expected = [4, 1.25**2, 1.5**2, 1.75**2]
    np.testing.assert_allclose(result.losses, expected, rtol=1e-6)
    np.testing.assert_allclose(result.loss, 2**2, rtol=1e-6)  # at the end, t = 1
    np.testing.assert_allclose(result.batch, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda u: {"first": u["first"]}, "missing .*last/bias.*last/kernel"),
        (lambda u: {**u, "more": jnp.zeros(1)}, r"unknown \['more'\]"),
        (
            lambda u: {**u, "last": {**u["last"], "bias": jnp.zeros(4)}},
            r"update last/bias to have shape \(3,\).*got \(4,\)",
        ),
        (
            lambda u: jax.tree.map(lambda leaf: leaf[None], u),
            r"update first/bias to have shape \(8,\).*got \(1, 8\)",
        ),
    ],
    ids=["missing", "unknown", "shape", "stacked"],
)
def test_updates_of_another_network(change, message):
    params = toy.init(0)
    with pytest.raises(ValueError, match=message):
        attack_on(params, change(params), steps=1)
    with pytest.raises(ValueError, match="steps=0 >= 1"):
        attack_on(params, params, steps=0)


def attack_on(params, update, steps):
    guess = candidates.pixels((1, *toy.SHAPE), jnp.array([1]))
    adam = optax.adam(0.1)
    return matching.attack(toy.at(params), update, guess, optimizer=adam, steps=steps)


# A network with a strided convolution and two images: where XLA's programs differ.


def convolved(params, images):
    convolve = functools.partial(
        jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    out = convolve(images, params["conv"], (2, 2), "SAME")
    return toy.apply(params["rest"], jnp.tanh(out))


@pytest.fixture(scope="module")
def shared():
    """Params and an update."""
    conv = toy.batch(1, shape=(3, 3, 4))["image"].reshape(3, 3, 1, 4) - 0.5
    params = {"conv": conv, "rest": toy.init(0)}
    batch = toy.batch(2, size=2)
    grad = jax.grad(toy.losses.classification(convolved))
    return params, jax.jit(grad)(params, batch)


@functools.partial(jax.jit, static_argnames=("matrix_products", "restarts"))
def first_iterates(shared, scale, *, matrix_products, restarts=None):
    """Iterates, running means of the gradient and objectives of 10 steps."""
    params, observed = shared
    observed = jax.tree.map(lambda leaf: scale * leaf, observed)
    loss_fn = toy.losses.classification(convolved)
    client = clients.gradient(loss_fn, matrix_products=matrix_products)
    client = toy.at(params, client)
    prior = priors.total_variation(1e-3)
    adam = optax.adam(0.01)

    def one(start):
        guess = candidates.pixels(
            start.shape, jnp.array([0, 1]), init=lambda key, shape: start
        )
        guess = candidates.box(guess)
        attack = matching.attack(
            client, observed, guess, optimizer=adam, steps=10, prior=prior
        )

        def step(state, _):
            state = attack.advance(state, 1)
            mean_gradient = optax.tree.get(state.opt_state, "mu")["image"]
            return state, (state.z["image"], mean_gradient)

        final, steps = jax.lax.scan(step, attack.init(KEY()), length=10)
        return *steps, final.losses

    starts = toy.batch(3, size=32)["image"].reshape(16, 2, *toy.SHAPE)
    return jax.vmap(one)(starts[:restarts]) if restarts else one(starts[0])


@pytest.fixture(scope="module")
def alone(shared):
    return first_iterates(shared, 1.0, matrix_products=True)


def assert_agree(actual, expected):
    # Adam divides by |g|: rounding counts where a pixel's gradient is near 0.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(
            a, e, rtol=1e-4, atol=1e-4 * abs(e).max()
        ),
        actual,
        expected,
    )
    assert float(jnp.abs(actual[0][9] - actual[0][0]).max()) > 0.05  # they have moved


def test_a_trial_is_the_same_alone_and_among_sixteen(shared, alone):
    among = first_iterates(shared, 1.0, matrix_products=True, restarts=16)
    assert_agree(jax.tree.map(lambda leaf: leaf[0], among), alone)


def test_matrix_products_change_nothing(shared, alone):
    assert_agree(first_iterates(shared, 1.0, matrix_products=False), alone)


def test_the_scale_of_the_update_does_not_matter_to_the_cosine(shared, alone):
    scaled = first_iterates(shared, 4.0, matrix_products=True)
    jax.tree.map(np.testing.assert_array_equal, scaled, alone)
