"""Images of weights that nobody knows, as clipping leaves them."""

import functools

import jax
import numpy as np
import pytest
from support import decoys

from invertjax import clients, defenses, exact
from invertjax.auditing import Target, Threat, closed_forms
from invertjax.defenses import protections
from invertjax.defenses.protection import Parts


@functools.cache
def peeling():
    layer = exact.lowest(decoys.BLOCKS, decoys.init(0), (6, *decoys.SHAPE))
    return jax.jit(lambda p, u: exact.peel(layer, p, u, 6, weights=()))


def clipped_all(params, truth):
    update = decoys.gradient(params, truth)
    return jax.tree.map(lambda leaf: 0.123 * leaf, update)


def clipped_each(params, truth):
    client = defenses.dp_sgd(clients.gradient(decoys.loss_fn), 0.5, 0.0)
    return client(params, truth, jax.random.key(0))


@pytest.mark.parametrize("clipped, each", [(clipped_all, False), (clipped_each, True)])
def test_clipped_images_are_certified_with_their_weights(clipped, each):
    for seed in range(2):
        params, truth = decoys.init(seed), decoys.batch(seed)
        update = clipped(params, truth)
        assert not np.any(decoys.peeling()(params, update).certified)
        found = peeling()(params, update)
        assert np.sum(found.certified) >= 5
        assert decoys.false_ones(found, truth)[0] == 0
        weights = np.asarray(found.weights)[np.asarray(found.certified)]
        assert (np.ptp(weights) > 1e-3 * weights.max()) == each


@pytest.mark.parametrize("decoy", decoys.DECOYS, ids=lambda decoy: decoy.__name__)
def test_an_unknown_weight_makes_no_decoy_certain(decoy):
    for seed in range(4):
        found = peeling()(*decoy(seed))
        assert decoys.false_ones(found, decoys.batch(seed))[0] == 0


def test_a_weight_is_an_unknown_more():
    """Two equations with the weight unknown say no more than one with it known."""
    layer = exact.lowest(decoys.BLOCKS, decoys.init(0, 2), (6, *decoys.SHAPE))
    update = decoys.gradient(decoys.init(0, 2), decoys.batch(0, 2))
    found = exact.peel(layer, decoys.init(0, 2), update, 6, weights=(), rounds=1)
    assert not np.any(found.certified)


@pytest.mark.parametrize(
    "name, value, known",
    [
        ("clip", 1.0, {"weights": ()}),
        ("dp_sgd", (0.5, 2.0), {"weights": (), "noise": 0.5 * 2 / 6}),
        ("gaussian", 0.1, {"noise": 0.1}),
    ],
)
def test_who_knows_of_a_defense_knows_what_it_leaves_open(name, value, known):
    made = (protections.of(name, value),)
    shape = (6, *decoys.SHAPE)
    target = Target(decoys.loss_fn, shape, Parts(4), protections=made)
    told = closed_forms.told(target, Threat(protection_known=True))
    assert {**told, "noise": float(told.get("noise", 0))} == {"noise": 0, **known}
    assert closed_forms.told(target, Threat()) == {}
