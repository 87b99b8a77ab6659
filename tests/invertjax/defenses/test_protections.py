"""Rows of defenses: what each is said to do, it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import clients, distances
from invertjax.defenses import protection, protections
from invertjax.defenses.protections import PROTECTIONS

# A value in range of every row.
VALUES = {
    "clip": 0.1,
    "clip_layers": 0.1,
    "gaussian": 0.1,
    "laplace": 0.1,
    "orthogonal": 0.5,
    "prune": 0.5,
    "top_k": 0.5,
    "top_k_feedback": 0.5,
    "sparsify": 0.5,
    "drop": 1.0,
    "quantise": 3.0,
    "stochastic_quantise": 3.0,
    "sign": None,
    "outpost": 0.1,
    "dp_sgd": (0.5, 0.1),
    "soteria": 0.5,
    "mixup": 2,
    "instahide": 2,
    "ats": "3-1-7",
    "precode": 4,
    "dropout": 0.5,
}


def parts():
    """Of the toy, whose representation are its hidden units."""
    features, head = toy.BLOCKS
    return protection.Parts(toy.CLASSES, features, head, "last", 8)


def one(name):
    return protections.of(name, VALUES[name])


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_row_is_of_one_sort(name):
    row = PROTECTIONS[name].protection
    assert row.name == name
    assert sum(bool(sort) for sort in (row.update, row.client, row.network)) == 1
    hash(one(name))  # it is part of the key of compiled programs


@pytest.mark.parametrize("name", [n for n, r in PROTECTIONS.items() if r[0].update])
def test_those_of_the_update_change_what_is_shared(name):
    params = toy.init(0)
    update = jax.grad(toy.loss_fn)(params, toy.batch(1))
    transform = protection.chained([one(name)])(jax.random.key(0))
    shared, _ = transform.update(update, transform.init(params), params)
    change = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), shared, update)
    assert max(jax.tree.leaves(change)) > 0


@pytest.mark.parametrize("name", [n for n, r in PROTECTIONS.items() if r[0].client])
def test_those_of_the_client_change_how_it_computes(name):
    params, batch = toy.init(0), toy.batch(1, size=2)
    plain = clients.gradient(toy.loss_fn)
    found = protection.wrapped(plain, [one(name)], parts())
    shared = found(params, batch, jax.random.key(3))
    change = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(), shared, plain(params, batch, None)
    )
    assert max(jax.tree.leaves(change)) > 0


def test_noise_is_of_the_law_and_scale_that_the_row_says():
    """Over 10,000 draws: a standard deviation to 3%, and not two thirds of it."""
    training = protection.Training(images=1)
    zeros = {"w": jnp.zeros(10_000)}
    for name in ("gaussian", "laplace"):
        noisy = one(name)
        transform = protection.chained([noisy])(jax.random.key(0))
        drawn = np.asarray(transform.update(zeros, transform.init(zeros))[0]["w"])
        scale = noisy.noise_scale(training)
        spread = {"gaussian": drawn.std(), "laplace": np.abs(drawn).mean()}[noisy.law]
        assert spread == pytest.approx(scale, rel=0.03)


def test_only_a_single_defense_of_a_known_law_is_known_noise():
    assert protection.noise([one("gaussian")]) == one("gaussian")
    assert protection.noise([one("dp_sgd")]).law == "gaussian"
    for several in ([], [one("prune")], [one("gaussian"), one("sign")]):
        assert protection.noise(several) is None


def test_the_accountant_reads_the_multiplier_from_the_row():
    counted = [n for n, r in PROTECTIONS.items() if r.protection.multiplier]
    assert counted == ["dp_sgd"]
    private = one("dp_sgd")
    assert private.multiplier(private.value) == 0.5


def test_who_adapts_sees_no_difference_that_the_defense_has_made():
    """At the truth the adapted distance of a masking defense is zero."""
    update = jax.grad(toy.loss_fn)(toy.init(0), toy.batch(1))
    for name in ("prune", "top_k", "drop", "clip"):
        transform = protection.chained([one(name)])(jax.random.key(0))
        shared, _ = transform.update(update, transform.init(update), update)
        adapted = protection.adapted(distances.squared, [one(name)])
        assert adapted(update, shared) < 1e-10 < distances.squared(update, shared)


@pytest.mark.parametrize("name", ["precode", "dropout"])
def test_networks_that_draw_need_their_parts(name):
    change = one(name)
    made = change.network(parts(), change.value)
    drawn = made.drawn.draw(jax.random.key(0), toy.batch(1, size=2))
    assert drawn[made.drawn.name].shape == (2, made.drawn.size)
    with pytest.raises(ValueError, match="parts of the network"):
        change.network(protection.Parts(toy.CLASSES), change.value)
    with pytest.raises(ValueError, match="expected one of them"):
        protection.network_change([change, change])


def test_names():
    with pytest.raises(ValueError, match="name='prone' to be one of clip"):
        protections.of("prone", 1)
    assert str(protections.of("dp_sgd", (0.5, 1.0))) == "dp_sgd:0.5,1.0"


def test_feedback_and_top_k_prune_the_update_as_a_whole():
    update = {"small": jnp.full(4, 0.1), "large": jnp.arange(1.0, 5.0)}
    for name in ("top_k", "top_k_feedback"):
        made = protection.chained([protections.of(name, 0.5)])(jax.random.key(0))
        shared, _ = made.update(update, made.init(update), update)
        np.testing.assert_array_equal(shared["small"], 0)
        np.testing.assert_array_equal(shared["large"], update["large"])
