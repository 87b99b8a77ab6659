"""Every attack by the rows of the attackers; then what each promises beside it."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

from invertjax import attacks, candidates, clients, defenses, driver, metrics
from invertjax.attacks.inverting_gradients import step_decay
from invertjax.auditing import (
    Target,
    Threat,
    attackers,
    observed,
    preparing,
    programs,
)
from invertjax.auditing.keys import keys_of
from invertjax.base import Stop
from invertjax.defenses import protections
from invertjax.defenses.protection import Parts

SHAPE = (1, *toy.SHAPE)
TWO = (2, *toy.SHAPE)
KEY = 5


def known(label, shape=SHAPE):
    return candidates.pixels(shape, label, init=candidates.grey)


@pytest.fixture(scope="module")
def params():
    return toy.init(0)


def error(result, batch):
    return float(jnp.abs(result.batch["image"] - batch["image"]).max())


def prepared(name, params, label):
    """What the row of an attack makes of one toy update, as an audit prepares it."""
    row, cache = attackers.ATTACKERS[name], driver.Cache()
    batches = jax.tree.map(lambda leaf: leaf[None], toy.batch(label, label=label))
    # Of noise as small as this nothing is left to see.
    noise = (protections.of("gaussian", 1e-6),) if row.noise else ()
    target = Target(
        toy.loss_fn, SHAPE, Parts(toy.CLASSES), None, noise, blocks=toy.BLOCKS
    )
    threat = Threat(row.labels[0], protection_known=row.noise)
    if row.refuses and row.refuses(target, params, threat):  # it needs a relu
        target = target._replace(loss_fn=toy.relu_loss, blocks=toy.RELU_BLOCKS)
    keys = keys_of(jax.random.key(KEY), 1, 1)
    situation = observed.simulate(
        keys.clients, row, target, threat, params, batches, cache=cache
    )
    public = toy.batch(9, size=8)
    steps = None if row.closed_form else min(row.steps, 500)
    numbers = {"total_variation": 0.0}  # the images are noise
    options = {"public": public, "steps": steps, "numbers": numbers, "cache": cache}
    return preparing.prepare(keys, row, target, situation, **options)


@pytest.mark.parametrize("name", attackers.ATTACKERS)
def test_every_attack(params, name):
    """Recovers two batches by one trace, and does the same under jit as without."""
    first = prepared(name, params, 2)
    make, traced = programs.maker(first.situation, first.plan), []

    def run(shared, trial, key, steps):
        traced.append(name)
        attack = make(shared, trial)
        assert attack.steps in (0, first.plan.steps)  # 0: there is nothing to solve
        return attack.result(attack.advance(attack.init(key), steps))

    jitted = jax.jit(run)
    for label in (2, 0):
        situation = prepared(name, params, label).situation
        trial = jax.tree.map(lambda leaf: leaf[0], situation.trials)
        batch = jax.tree.map(lambda leaf: leaf[0], situation.truth)
        arguments = (situation.shared, trial)
        result = jitted(*arguments, jax.random.key(KEY), 500)
        assert result.stopped in (Stop.BUDGET, Stop.CONVERGED)
        # The last learning rate of signed steps is 2e-5, and they circle within a few
        # of it; L-BFGS ends where the squared distance, about 1e-8, rounds.
        assert error(result, batch) < 2e-3
        # Both runs start alike: joint labels are not those of the start.
        found = result.batch["label"]
        assert (found if found.ndim == 1 else found.argmax(1)) == label
        assert 0 <= result.loss < 1e-3
    assert len(traced) == 1

    eager, again = (form(*arguments, jax.random.key(KEY), 5) for form in (run, jitted))
    # Five steps of rounding; label probabilities and pixels are of order 1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        eager.batch,
        again.batch,
    )


# name: largest error of a pixel in [0, 1], with all defaults; grey is 0.5 off
PAGE = {
    "inverting_gradients": 0.25,  # its total variation smooths these images of noise
    "deep_leakage": 1e-4,
    "gauss_newton": 1e-4,
    "idlg": 1e-4,
    "auto": 1e-5,
    "analytic": 1e-5,
}


@pytest.mark.parametrize("name", PAGE)
def test_the_lines_of_the_page_run_every_attack_by_its_name_alone(params, name):
    page = pathlib.Path(__file__).parents[3] / "docs" / "your_model.md"
    text = page.read_text("utf-8")
    (lines,) = re.findall(r"```python\n(import jax, invertjax\n.*?)```", text, re.S)
    assert lines.count("attacks.inverting_gradients(") == 1
    scope = {"loss_fn": toy.loss_fn, "params": params, "batch": toy.batch(1)}
    exec(lines.replace("inverting_gradients", name), scope)
    assert error(scope["result"], scope["batch"]) < PAGE[name]


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
    assert attacks.admits(update, SHAPE, path="first")
    attack = attacks.auto(share, update, known(batch["label"]), steps=7)
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


def test_the_closed_form_reads_a_file_of_numpy_arrays(params):
    batch = toy.batch(1)
    client = toy.at(params)
    update = jax.tree.map(np.asarray, client(batch))
    attack = attacks.analytic(client, update, known(batch["label"]))
    z = jax.jit(attack.init)(jax.random.key(KEY))
    np.testing.assert_allclose(z["image"], batch["image"], atol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e20, 1e25, 1e30])
def test_noise_admits_no_closed_form_at_any_scale(params, scale):
    """Squares of such updates are infinite, or zero: no misfit may be compared so."""
    noise = toy.init(9)
    update = jax.tree.map(lambda leaf: np.float32(scale) * leaf, noise)
    assert not attacks.admits(update, SHAPE)
    shared = jax.tree.map(
        lambda leaf: np.float32(scale) * leaf,
        jax.grad(toy.loss_fn)(params, toy.batch(1)),
    )
    assert attacks.admits(shared, SHAPE)


def test_auto_falls_back_to_inverting_gradients(params):
    batch = toy.batch(1, size=2)
    client = toy.at(params)
    guess = known(batch["label"], TWO)
    attack = attacks.auto(client, jax.jit(client)(batch), guess, steps=7)
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
        path="first",
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
            lambda client, update, two: attacks.idlg(client, update, known(two, TWO)),
            "batch_size=2 to be 1.*labels.counts",
        ),
        (
            lambda client, update, two: attacks.idlg(
                client, update, known(two[:1]), num_classes=4
            ),
            "num_classes=4 to be the outputs",
        ),
        (
            lambda client, update, two: attacks.idlg(
                client, update, candidates.pixels(SHAPE, num_classes=5)
            ),
            "num_classes=5 to be the outputs",
        ),
        (
            lambda client, update, two: attacks.idlg(
                client, {**update, "other": update["last"]}, known(two[:1])
            ),
            "num_classes=... or path=.* 'last' .* 'other'",
        ),
        (
            lambda client, update, two: attacks.analytic(
                client, update, known(two[:1]), path="last"
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
    ids=[
        "analytic of two",
        "idlg of two",
        "classes",
        "logits",
        "ambiguous",
        "layer",
        "bias",
    ],
)
def test_attacks_that_do_not_fit(params, make, message):
    with pytest.raises(ValueError, match=message):
        make(toy.at(params), params, jnp.array([0, 1]))


def test_step_decay_falls_at_three_five_and_seven_eighths():
    rate = step_decay(jnp.array(2.0), 80)
    for count, expected in [(0, 2), (29, 2), (30, 0.2), (50, 0.02), (70, 2e-3)]:
        np.testing.assert_allclose(rate(count), expected, rtol=1e-6)


def test_the_rate_falls_tenfold_three_times():
    rate = step_decay(0.5, 80)
    counts = np.array([0, 29, 31, 49, 51, 69, 71, 80])
    expected = 0.5 * np.array([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    np.testing.assert_allclose([rate(count) for count in counts], expected, rtol=1e-5)
