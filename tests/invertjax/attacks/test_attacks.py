"""Every attack by one table; then what each promises beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

from invertjax import attacks, candidates, clients, defenses, metrics
from invertjax.attacks.inverting_gradients import step_decay
from invertjax.base import Stop

SHAPE = (1, *toy.SHAPE)
TWO = (2, *toy.SHAPE)
KEY = 5


def known(label, shape=SHAPE):
    return candidates.pixels(shape, label, init=candidates.grey)


# name: (make(client, observed, label), largest error of a pixel in [0, 1])
ATTACKS = {
    # Rounding of one division.
    "analytic": (
        lambda client, observed, label: attacks.analytic(
            client, observed, known(label)
        ),
        1e-5,
    ),
    # The last learning rate is 2e-5; signed steps circle within a few of it.
    "inverting_gradients": (
        lambda client, observed, label: attacks.inverting_gradients(
            client, observed, known(label), steps=500, total_variation=0.0
        ),
        2e-3,
    ),
    # L-BFGS ends where the squared distance, about 1e-8, rounds.
    "deep_leakage": (
        lambda client, observed, label: attacks.deep_leakage(
            client,
            observed,
            candidates.pixels(SHAPE, num_classes=toy.CLASSES),
            steps=100,
            history=8,
        ),
        2e-3,
    ),
    "idlg": (
        lambda client, observed, label: attacks.idlg(
            client, observed, SHAPE, num_classes=toy.CLASSES, steps=100, history=8
        ),
        2e-3,
    ),
}


@pytest.fixture(scope="module")
def params():
    return toy.init(0)


def error(result, batch):
    return float(jnp.abs(result.batch["image"] - batch["image"]).max())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack(params, name):
    """Recovers two batches by one trace, and does the same under jit as without."""
    make, tolerance = ATTACKS[name]
    client = toy.at(params)
    share = jax.jit(client)
    traced = []

    def run(observed, label, key, steps):
        traced.append(name)
        attack = make(client, observed, label)
        assert attack.steps in (0, 100, 500)
        return attack.result(attack.advance(attack.init(key), steps))

    jitted = jax.jit(run)
    for label in (2, 0):
        batch = toy.batch(label, label=label)
        observed = share(batch)
        result = jitted(observed, batch["label"], jax.random.key(KEY), 500)
        assert result.stopped == Stop.BUDGET
        assert error(result, batch) < tolerance
        # Both runs start alike: joint labels are not those of the start.
        found = result.batch["label"]
        assert (found if found.ndim == 1 else found.argmax(1)) == label
        # What it calls its loss is one: small here, and large for another batch.
        assert 0 <= result.loss < 1e-3
    assert len(traced) == 1

    arguments = (observed, batch["label"])
    eager = run(*arguments, jax.random.key(KEY), 5)
    again = jitted(*arguments, jax.random.key(KEY), 5)
    # Five steps of rounding; label probabilities and pixels are of order 1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        eager,
        again,
    )


def test_the_analytic_attack_is_exact_on_an_image_of_3072_pixels():
    params = toy.init(0, inputs=3072, hidden=16)
    # A unit that the loss does not see: its ratio is 0 / 0, and must not be taken.
    params["last"]["kernel"] = params["last"]["kernel"].at[3].set(0.0)
    batch = toy.batch(1, shape=(32, 32, 3))
    client = toy.at(params)
    update = jax.jit(client)(batch)
    attack = attacks.analytic(client, update, known(batch["label"], (1, 32, 32, 3)))
    result = jax.jit(lambda key: attack.result(attack.init(key)))(jax.random.key(KEY))
    assert metrics.psnr(result.batch["image"], batch["image"]) > 120
    assert result.loss < 1e-10


@pytest.mark.parametrize(
    "client, update_scale",
    [
        (clients.gradient(toy.loss_fn), 1e-3),
        (clients.local_sgd(toy.loss_fn, optax.sgd(0.5), steps=1), 1.0),
        # All steps see the same image, so that their sum has the closed form, too.
        (clients.local_sgd(toy.loss_fn, optax.sgd(0.5), steps=3), 1.0),
    ],
    ids=["scaled", "one step", "three steps"],
)
def test_updates_that_admit_the_closed_form(params, client, update_scale):
    batch = toy.batch(1)
    share = toy.at(params, client)
    update = jax.tree.map(lambda leaf: update_scale * leaf, jax.jit(share)(batch))
    assert attacks.admits(update, SHAPE)
    assert attacks.admits(update, SHAPE, layer="first")
    attack = attacks.auto(share, update, known(batch["label"]), SHAPE, steps=7)
    assert attack.steps == 0
    z = attack.init(jax.random.key(KEY))
    # Updates of FedAvg are rounded at the size of the params.
    np.testing.assert_allclose(z["image"], batch["image"], atol=1e-4)


def defended(transform):
    return lambda params, batch: transform.update(
        jax.grad(toy.loss_fn)(params, batch), transform.init(params)
    )[0]


@pytest.mark.parametrize(
    "share, size",
    [
        (jax.grad(toy.loss_fn), 2),
        (defended(defenses.gaussian_noise(jax.random.key(3), 1e-3)), 1),
        (defended(defenses.prune(0.5)), 1),
        (lambda params, batch: jax.tree.map(jnp.zeros_like, params), 1),
        (lambda params, batch: {"last": params["last"]}, 1),
        (lambda params, batch: {"kernel": params["first"]["kernel"]}, 1),
    ],
    ids=["two images", "noise", "pruned", "zero", "no such layer", "no bias"],
)
def test_updates_that_do_not(params, share, size):
    update = jax.jit(share)(params, toy.batch(1, size=size))
    assert not attacks.admits(update, (size, *toy.SHAPE))
    assert not attacks.admits(update, SHAPE)


def test_auto_falls_back_to_inverting_gradients(params):
    batch = toy.batch(1, size=2)
    client = toy.at(params)
    guess = known(batch["label"], TWO)
    attack = attacks.auto(client, jax.jit(client)(batch), guess, TWO, steps=7)
    assert attack.steps == 7


def test_auto_undoes_a_normalisation(params):
    def loss_fn(params, batch):
        return toy.loss_fn(params, {**batch, "image": (batch["image"] - 0.5) / 0.25})

    batch = toy.batch(1)
    client = toy.at(params, clients.gradient(loss_fn))
    update = jax.jit(client)(batch)
    attack = attacks.auto(
        client,
        update,
        known(batch["label"]),
        SHAPE,
        layer="first",
        from_input=lambda flat: 0.25 * flat + 0.5,
    )
    z = attack.init(jax.random.key(KEY))
    np.testing.assert_allclose(z["image"], batch["image"], atol=1e-5)


def test_analytic_says_when_there_is_nothing_to_read(params):
    zero = jax.tree.map(jnp.zeros_like, params)
    attack = attacks.analytic(toy.at(params), zero, known(jnp.array([0])))
    result = attack.result(attack.init(jax.random.key(KEY)))
    assert result.stopped == Stop.NON_FINITE
    assert result.loss == jnp.inf


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda client, update, two: attacks.analytic(
                client, update, known(two, TWO)
            ),
            "batch_size=2 to be 1.*inverting_gradients",
        ),
        (
            lambda client, update, two: attacks.idlg(
                client, update, TWO, num_classes=toy.CLASSES
            ),
            "batch_size=2 to be 1.*labels.counts",
        ),
        (
            lambda client, update, two: attacks.idlg(
                client, update, SHAPE, num_classes=4
            ),
            "num_classes=4 to be the outputs",
        ),
        (
            lambda client, update, two: attacks.analytic(
                client, update, known(two[:1]), layer="last"
            ),
            "in_size=36 to be the inputs",
        ),
        (
            lambda client, update, two: attacks.analytic(
                client, {"kernel": update["first"]["kernel"]}, known(two[:1])
            ),
            "to have a bias",
        ),
    ],
    ids=["analytic of two", "idlg of two", "classes", "layer", "bias"],
)
def test_attacks_that_do_not_fit(params, make, message):
    with pytest.raises(ValueError, match=message):
        make(toy.at(params), params, jnp.array([0, 1]))


def test_step_decay_falls_at_three_five_and_seven_eighths():
    rate = step_decay(jnp.array(2.0), 80)
    for count, expected in [(0, 2), (29, 2), (30, 0.2), (50, 0.02), (70, 2e-3)]:
        np.testing.assert_allclose(rate(count), expected, rtol=1e-6)
