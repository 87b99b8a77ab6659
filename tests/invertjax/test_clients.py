"""Clients against plain autodiff, Python loops and hand-computed visits of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

from invertjax import attacks, candidates, clients, defenses, driver, federated
from invertjax.base import Stop

PLAIN = functools.partial(clients.gradient, matrix_products=False)


@pytest.fixture(scope="module")
def params():
    return toy.init(0)


@pytest.fixture(scope="module")
def batch():
    return toy.soft(toy.batch(1, size=4))


def assert_close(actual, expected, relative):
    """Every leaf to `relative` of its largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.max(jnp.abs(e)))
        np.testing.assert_allclose(a, e, rtol=0, atol=relative * scale)


@pytest.mark.parametrize("labels", ["integers", "probabilities"])
def test_gradient_is_that_of_the_loss(params, labels):
    batch = toy.batch(1, size=4)
    batch = toy.soft(batch) if labels == "probabilities" else batch
    shared = jax.jit(clients.gradient(toy.loss_fn))(params, batch, jax.random.key(2))
    expected = jax.jit(jax.grad(toy.loss_fn))(params, batch)
    assert_close(shared, expected, 1e-5)  # the same operations, in two programs


def matching_loss(client, params, batch):
    """|client(batch) - v|^2 against an update v that it is far from."""
    update = client(params, batch, jax.random.key(2))
    return optax.tree.norm(jax.tree.map(lambda u: u - 0.1, update), squared=True)


def local(loss_fn, **options):
    return clients.local_sgd(loss_fn, optax.sgd(0.5), steps=3, batch_size=2, **options)


@pytest.mark.parametrize("make", [PLAIN, local], ids=["gradient", "local_sgd"])
def test_derivative_rules_equal_plain_autodiff(params, batch, make):
    def derivative(rule):
        client = make(toy.loss_fn, rule=rule)
        loss = functools.partial(matching_loss, client)
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, batch)

    plain = derivative("plain")
    for rule in ("linearised", "recomputed"):
        fast = derivative(rule)
        # Equal but for the order of rounding: some float32 eps of 1.2e-7.
        assert_close(fast, plain, 2e-5)
        assert float(jnp.abs(fast[1]["label"]).max()) > 1e-3


def test_the_linearised_rule_takes_seven_forward_passes():
    """As XLA counts the work of ten equal dense layers."""
    kernels = [jnp.eye(64)] * 10
    image = jnp.ones((256, 64))

    def loss_fn(kernels, batch):
        features = batch["image"]
        for kernel in kernels:
            features = jnp.sin(features @ kernel)
        return jnp.mean(features)

    def match(kernels, image):
        client = clients.gradient(loss_fn)
        return matching_loss(client, kernels, {"image": image})

    def flops(fun, *args):
        return jax.jit(fun).lower(*args).compile().cost_analysis()["flops"]

    forward = flops(loss_fn, kernels, {"image": image})
    # A little less: the first layer's input is no function of the params.
    step = flops(jax.grad(match, argnums=1), kernels, image)
    assert 6.5 * forward < step < 7.1 * forward


def test_integer_labels_pass_through_local_steps(params):
    batch = toy.batch(1, size=4)

    @jax.jit
    @jax.grad
    def derivative(image, label):
        client = local(toy.loss_fn)
        return matching_loss(client, params, {"image": image, "label": label})

    onehot = jax.nn.one_hot(batch["label"], toy.CLASSES)
    whole = derivative(batch["image"], batch["label"])
    assert_close(whole, derivative(batch["image"], onehot), 1e-5)


def test_one_step_of_sgd_shares_the_scaled_gradient(params, batch):
    client = clients.local_sgd(toy.loss_fn, optax.sgd(0.25), steps=1)
    update = jax.jit(client)(params, batch, jax.random.key(2))
    gradient = jax.jit(jax.grad(toy.loss_fn))(params, batch)
    for u, g in zip(jax.tree.leaves(update), jax.tree.leaves(gradient), strict=True):
        # params - (params - u) rounds twice, at the size of the params: below 1 here.
        np.testing.assert_allclose(u, 0.25 * g, rtol=1e-5, atol=2**-20)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.5, momentum=0.9), optax.adam(0.05)],
    ids=["momentum", "adam"],
)
def test_scan_equals_a_python_loop(params, batch, optimizer):
    client = clients.local_sgd(toy.loss_fn, optimizer, steps=4, batch_size=2)

    def unrolled(params, batch, key):
        del key
        now, state = params, optimizer.init(params)
        for rows in ([0, 1], [2, 3], [0, 1], [2, 3]):
            mini = {name: batch[name][jnp.array(rows)] for name in batch}
            grads = jax.grad(toy.loss_fn)(now, mini)
            delta, state = optimizer.update(grads, state, now)
            now = optax.apply_updates(now, delta)
        return jax.tree.map(jnp.subtract, params, now)

    def both(client):
        def loss(batch):
            update = client(params, batch, jax.random.key(2))
            return optax.tree.norm(update, squared=True), update

        return jax.grad(loss, has_aux=True)(batch)

    jitted = jax.jit(both, static_argnums=0)
    assert_close(jitted(client), jitted(unrolled), 1e-4)  # four steps of rounding


def visits(keys, size, **options):
    """`[keys, 8, size]`: how often each local step uses each row of the batch.

    The gradient of sum(rows @ p) counts the rows of one-hot "images". Step i has the
    learning rate 4^i, so that the digits of the update in base 4 are the counts.
    """
    client = clients.local_sgd(
        lambda params, batch: jnp.sum(batch["image"] @ params),
        optax.sgd(lambda step: 4.0**step),
        **options,
    )
    every = jax.jit(jax.vmap(client, in_axes=(None, None, 0)))
    keys = jax.random.clone(keys)  # tests may share one: the order of the batch is none
    updates = every(jnp.zeros(size), {"image": jnp.eye(size)}, keys).astype(int)
    return np.stack([updates // 4**step % 4 for step in range(8)], axis=1)


KEY = jax.random.key(0)[None]


def test_steps_take_the_rows_in_turn_modulo_the_batch():
    (counts,) = visits(KEY, 3, steps=3, batch_size=2)
    np.testing.assert_array_equal(counts[:3], [[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    assert not counts[3:].any()


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"epochs": 2}, 2),
        ({"epochs": 2, "batch_size": 3}, 4),  # ceil(5 / 3) = 2 steps an epoch
        ({"epochs": 1, "batch_size": 1}, 5),
        ({"steps": 3}, 3),
    ],
)
def test_budget_in_steps_or_epochs(options, steps):
    rows = options.get("batch_size", 5)
    (counts,) = visits(KEY, 5, **options)
    np.testing.assert_array_equal(counts.sum(1), [rows] * steps + [0] * (8 - steps))


def test_shuffling_visits_every_row_once_an_epoch():
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 2, 0]))
    options = {"epochs": 4, "batch_size": 2, "shuffle": True}
    orders = visits(keys, 4, **options).reshape(4, 4, 2, 4)  # key, epoch, step, row
    np.testing.assert_array_equal(orders.sum(2), 1)
    # There are 6 ways to halve 4 rows: 4 epochs are all alike with a chance of 1/216.
    assert len({epoch.tobytes() for epoch in orders[0]}) > 1
    assert len({order.tobytes() for order in orders[:3]}) == 3
    np.testing.assert_array_equal(orders[3], orders[0])


def test_the_program_does_not_grow_with_the_steps(params, batch):
    def equations(steps):
        client = clients.local_sgd(toy.loss_fn, optax.adam(0.1), steps=steps)
        loss = jax.grad(functools.partial(matching_loss, client, params))
        return str(jax.make_jaxpr(loss)(batch)).count(" = ")

    assert equations(2) == equations(20) > 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "one of steps=None and epochs=None"),
        ({"steps": 1, "epochs": 1}, "one of steps=1 and epochs=1"),
        ({"steps": 0}, "steps=0 >= 1"),
        ({"epochs": 0}, "epochs=0 >= 1"),
        ({"steps": 1, "batch_size": 0}, "batch_size=0 >= 1"),
    ],
)
def test_impossible_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        clients.local_sgd(toy.loss_fn, optax.sgd(0.1), **options)


def test_more_rows_than_there_are(params, batch):
    client = clients.local_sgd(toy.loss_fn, optax.sgd(0.1), steps=1, batch_size=5)
    with pytest.raises(ValueError, match="batch_size=5 <= 4"):
        client(params, batch, jax.random.key(0))


def test_a_loss_must_be_a_scalar(params, batch):
    client = clients.gradient(lambda params, batch: toy.apply(params, batch["image"]))
    with pytest.raises(ValueError, match=r"scalar, got shape \(4, 3\)"):
        client(params, batch, jax.random.key(0))


def test_forward_mode_needs_plain_autodiff(params, batch):
    def along(client):
        def shared(image):
            return toy.at(params, client)({**batch, "image": image})["last"]["bias"]

        image = batch["image"]
        return jax.jit(lambda: jax.jvp(shared, (image,), (image,))[1]).lower().out_info

    assert along(clients.gradient(toy.loss_fn, rule="plain")).shape == (toy.CLASSES,)
    with pytest.raises(TypeError, match="forward-mode"):
        along(clients.gradient(toy.loss_fn))


def drawing(client):
    def draw(key, batch):
        return {"label": jnp.zeros(len(batch["image"]), jnp.int32)}

    return clients.randomised(client, draw)


def halved(batch):
    return {**batch, "image": 0.5 * batch["image"]}


def flattened(params, images):
    return images.reshape(len(images), -1)


WRAPPERS = {
    "bare": lambda client: client,
    "local": lambda client: clients.local(client, optax.sgd(0.5), steps=2),
    "randomised": drawing,
    "defended": lambda client: defenses.defend(client, lambda key: defenses.prune(0.5)),
    "transformed": lambda client: defenses.transformed(client, halved),
    "mixup": lambda client: defenses.mixup(client, toy.CLASSES),
    "dp_sgd": lambda client: defenses.dp_sgd(client, 0.1, 1.0),
    "soteria": lambda client: defenses.soteria(client, flattened, "first", 0.5),
    "averaged": lambda client: federated.averaged(client, 2),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("rule", ["linearised", "recomputed"])
def test_the_plain_twin_of_every_client(params, name, rule):
    """It shares the same; J forwards is the transpose of J^T backwards."""
    share = toy.at(params, WRAPPERS[name](clients.gradient(toy.loss_fn, rule=rule)))
    batch = toy.batch(1, size=4)

    def at_image(share):
        return lambda image: share({**batch, "image": image})

    @jax.jit
    def both(image):
        update, pull = jax.vjp(at_image(share), image)
        plain, pushed = jax.jvp(at_image(clients.plain(share)), (image,), (image,))
        products = optax.tree.vdot(pushed, update), jnp.vdot(*pull(update), image)
        return update, plain, products

    update, plain, (forwards, backwards) = both(batch["image"])
    assert_close(plain, update, 1e-6)
    # Sums of some 300 products, in float32.
    np.testing.assert_allclose(forwards, backwards, rtol=1e-4)
    assert abs(forwards) > 1e-6


def test_a_client_without_a_twin_is_its_own(params, batch):
    plain = clients.gradient(toy.loss_fn, rule="plain")
    assert clients.plain(plain) is plain
    share = toy.at(params, plain)
    assert clients.plain(share) is share
    twin = clients.plain(toy.at(params))
    assert clients.plain(twin) is twin


def test_what_wraps_a_client_does_not_take_over_its_twin(params, batch):
    share = toy.at(params)

    @functools.wraps(share)
    def other(batch):
        return jax.tree.map(jnp.zeros_like, share(batch))

    assert clients.plain(share) is not share
    assert clients.plain(other) is other


def test_a_client_at_a_key_may_be_called_again(params, batch):
    client = clients.local_sgd(
        toy.loss_fn, optax.sgd(0.1), epochs=1, batch_size=1, shuffle=True
    )
    share = clients.at(client, params, jax.random.key(3))
    twice = jax.jit(lambda batch: (share(batch), share(batch)))
    jax.tree.map(np.testing.assert_array_equal, *twice(batch))


def test_a_loss_may_close_over_arrays_of_a_vmap(params, batch):
    @jax.grad
    def derivative(image, scale):
        def loss_fn(params, batch):
            return toy.loss_fn(params, {**batch, "image": scale * batch["image"]})

        client = clients.gradient(loss_fn)
        return matching_loss(client, params, {**batch, "image": image})

    scales = jnp.array([1.0, 2.0])
    together = jax.jit(jax.vmap(derivative, in_axes=(None, 0)))
    alone = jax.jit(derivative)
    expected = jnp.stack([alone(batch["image"], scale) for scale in scales])
    assert_close(together(batch["image"], scales), expected, 1e-4)
    assert float(jnp.abs(expected[0] - expected[1]).max()) > 1e-3


def _noisy(params, batch, key):
    return jax.random.normal(key, params.shape) + 0 * batch["image"].sum()


def test_every_local_step_has_its_own_key():
    """20,000 draws: the sum of 4 equal ones has the standard deviation 4, not 2."""
    client = clients.local(_noisy, optax.sgd(1.0), steps=4)
    update = client(jnp.zeros(20_000), {"image": jnp.ones(3)}, jax.random.key(0))
    assert update.std() == pytest.approx(2, rel=0.03)


def test_randomised_draws_what_the_batch_does_not_bring():
    def client(params, batch, key):
        return params * batch["scale"] + batch["image"]

    drawing = clients.randomised(
        client, lambda key, batch: {"scale": jax.random.normal(key)}
    )
    batch, keys = {"image": jnp.ones(2)}, jax.random.split(jax.random.key(0), 2)
    one, two = (drawing(jnp.ones(2), batch, key) for key in keys)
    assert abs(one[0] - two[0]) > 1e-3
    known = drawing(jnp.ones(2), {**batch, "scale": 3.0}, jax.random.key(1))
    np.testing.assert_array_equal(known, [4, 4])


BLACK = [(0, 0, 0, 0), (1, 2, 3, 0)]  # pixels that are exactly zero


def with_black_pixels(batch):
    image = batch["image"]
    for pixel in BLACK:
        image = image.at[pixel].set(0.0)
    return {**batch, "image": image}


OPTIMISERS = {
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3),
    "amsgrad": optax.amsgrad(1e-3),
    "lamb": optax.lamb(1e-3),
    "rmsprop": optax.rmsprop(1e-3, eps_in_sqrt=False),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(1e-3)),
    "every other": optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_black_pixels_have_finite_derivatives_through_any_optimiser(params, name):
    """Their weights have a gradient of exactly zero, and so a root of zero."""
    batch = with_black_pixels(toy.batch(1, size=2))
    client = clients.local_sgd(toy.loss_fn, OPTIMISERS[name], steps=2)

    def loss(image):
        return matching_loss(client, params, {**batch, "image": image})

    derivative = jax.jit(jax.grad(loss))(batch["image"])
    assert jnp.isfinite(derivative).all() and jnp.abs(derivative).max() > 0


def test_an_attack_on_adam_comes_nearer_where_pixels_are_black(params):
    batch = with_black_pixels(toy.batch(1, size=2))
    client = clients.local_sgd(toy.loss_fn, optax.adamw(1e-3), steps=2)
    share = toy.at(params, client)
    guess = candidates.pixels(batch["image"].shape, batch["label"])
    attack = attacks.inverting_gradients(share, share(batch), guess, steps=30)
    result = driver.invert(jax.random.key(1), attack)
    assert result.stopped == Stop.BUDGET
    assert result.loss < 0.5 * result.losses[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
@pytest.mark.parametrize("name", ["gradient", "local", "dp_sgd", "own"])
def test_images_of_integers_are_refused_by_every_client(params, name, dtype):
    gradient = clients.gradient(toy.loss_fn)
    client = {
        "gradient": gradient,
        "local": clients.local(gradient, optax.sgd(0.1), steps=1),
        "dp_sgd": defenses.dp_sgd(gradient, 1.0, 1.0),
        "own": lambda params, batch, key: params,
    }[name]
    batch = {"image": np.zeros((2, *toy.SHAPE), dtype), "label": np.arange(2)}
    message = rf"type {np.dtype(dtype)} to be floats in \[0, 1\]: divide .* by 255"
    with pytest.raises(ValueError, match=message):
        clients.at(client, params, jax.random.key(0))(batch)
    if name in ("gradient", "local"):
        with pytest.raises(ValueError, match=message):
            client(params, batch, jax.random.key(0))


def test_a_loss_with_more_than_the_loss_is_refused(params, batch):
    client = clients.gradient(lambda params, batch: (toy.loss_fn(params, batch), {}))
    with pytest.raises(ValueError, match=r"got a tuple of 2: .*batch\)\[0\]"):
        client(params, batch, jax.random.key(0))


def test_local_steps_on_numpy_arrays_outside_of_jit(params, batch):
    client = local(toy.loss_fn)
    numpy = jax.tree.map(np.asarray, (params, batch))
    update = client(*numpy, jax.random.key(0))
    assert_close(update, jax.jit(client)(params, batch, jax.random.key(0)), 1e-5)


@jax.custom_vjp
def own_tanh(x):
    return jnp.tanh(x)


# Its rule calls itself, as is usual: so it has no forward mode in any form.
own_tanh.defvjp(lambda x: (own_tanh(x),) * 2, lambda y, g: ((1 - y**2) * g,))


def of_own_tanh(params, batch):
    flat = batch["image"].reshape(len(batch["image"]), -1)
    hidden = own_tanh(toy.dense(params["first"], flat))
    return toy.losses.classification(lambda p, _: toy.dense(p["last"], hidden))(
        params, batch
    )


@pytest.mark.parametrize("rule", ["linearised", "recomputed"])
def test_a_loss_with_a_custom_vjp_gets_the_plain_rule_and_says_so(params, batch, rule):
    def derivative(loss_fn):
        client = clients.gradient(loss_fn, rule=rule)
        loss = functools.partial(matching_loss, client)
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, batch)

    with pytest.warns(UserWarning, match=f"rule='plain' .*rule='{rule}'"):
        found = derivative(of_own_tanh)
    assert_close(found, derivative(toy.loss_fn), 2e-5)


# Params are any pytree: a counter, nothing, an empty array, names of dm-haiku.
def of_any(params, batch):
    layers = {name.partition("/")[0]: layer for name, layer in params["net"].items()}
    return toy.loss_fn(layers, batch) * params["scale"] + 0 * params["empty"].sum()


@pytest.fixture
def any_params(params):
    return {
        "net": {"first/~/a": params["first"], "last/~/b": params["last"]},
        "scale": np.float32(1.0),
        "empty": np.zeros((0, 3), np.float32),
        "count": np.arange(3),
        "nothing": None,
    }


@pytest.mark.parametrize("rule", ["linearised", "recomputed", "plain"])
def test_params_may_be_any_pytree(any_params, params, rule):
    batch = toy.batch(1)
    client = clients.gradient(of_any, rule=rule)
    share = toy.at(any_params, client)
    observed = jax.jit(share)(batch)
    assert observed["count"] is None and observed["nothing"] is None
    assert_close(observed["net"]["last/~/b"], toy.at(params)(batch)["last"], 1e-5)
    trained = clients.local(client, optax.adam(0.01), steps=2)(
        any_params, batch, jax.random.key(0)
    )
    assert trained["count"] is None and trained["empty"].shape == (0, 3)
    # Whoever subtracts params finds zeros in the counters.
    observed = {**observed, "count": np.zeros(3, int)}
    guess = candidates.pixels(batch["image"].shape, batch["label"])
    attack = attacks.deep_leakage(share, observed, guess, steps=5)
    result = driver.invert(jax.random.key(1), attack)
    assert result.loss < 0.5 * result.losses[0]
