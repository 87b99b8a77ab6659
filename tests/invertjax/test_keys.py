"""Keys of both kinds are taken everywhere, and what is no key is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import toy

import invertjax
from invertjax import attacks, candidates, clients, defenses, federated, keys, sweep
from invertjax.federated import secure_aggregation

PARAMS, BATCH = toy.init(0), toy.batch(1, size=2)
GRADIENT = clients.gradient(toy.loss_fn)
ZEROS = {"leaf": jnp.zeros(50)}


def _attack(update=None):
    share = toy.at(PARAMS)
    candidate = candidates.pixels((2, *toy.SHAPE), BATCH["label"])
    observed = share(BATCH) if update is None else update
    return attacks.inverting_gradients(share, observed, candidate, steps=2)


def _drawn(build):
    def shared(key):
        transform = build(key)
        return transform.update(
            ZEROS, transform.init(ZEROS), {"leaf": jnp.arange(50.0)}
        )

    return lambda key: shared(key)[0]


def _audited(key):
    batches = jax.tree.map(lambda leaf: leaf[None], BATCH)
    attack = dict(attack="inverting_gradients", steps=2, control=False)
    report = invertjax.audit(key, toy.loss_fn, PARAMS, batches=batches, **attack)
    return report.metrics["psnr"].values


def _swept(key):
    rows = jax.tree.map(lambda leaf: leaf[None], toy.at(PARAMS)(BATCH))
    trials = jax.random.split(key, (1, 1))
    cells = {"unused": np.zeros(1)}
    run = sweep.run(trials, lambda _, trial, __: _attack(trial), None, rows, cells)
    return run.results.batch


def _private(key):
    return defenses.dp_sgd(GRADIENT, 1.0, 1.0)(PARAMS, BATCH, key)


def _round(key):
    noise = lambda key: defenses.gaussian_noise(key, 1.0)  # noqa: E731
    made = federated.make([(lambda view: ZEROS, 2)], defense=noise)
    state = made.init(key, ZEROS, 2)
    ids, weights = jnp.arange(2), jnp.ones(2)
    after, seen, _ = made.step(key, state, ZEROS_OF_TWO, ids, weights)
    return seen.updates, after.params


ZEROS_OF_TWO = {"image": jnp.zeros((2, 1))}
ENTRIES = {
    "invert": lambda key: invertjax.invert(key, _attack()).batch,
    "sweep": _swept,
    "audit": _audited,
    "candidate": candidates.pixels((2, 3, 3, 1), jnp.arange(2)).init,
    "gaussian": _drawn(lambda key: defenses.gaussian_noise(key, 1.0)),
    "outpost": _drawn(lambda key: defenses.outpost(key, 1.0)),
    "dp_sgd": _private,
    "at": lambda key: clients.at(defenses.dp_sgd(GRADIENT, 1.0, 1.0), PARAMS, key)(
        BATCH
    ),
    "local": lambda key: clients.local_sgd(
        toy.loss_fn, optax.sgd(0.1), steps=2, batch_size=1, shuffle=True
    )(PARAMS, BATCH, key),
    "masks": lambda key: secure_aggregation.masked(
        key, {"leaf": jnp.zeros(5, jnp.uint32)}, 0, 2
    ),
    "round": _round,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_both_kinds_of_keys_draw_the_same(name):
    new = ENTRIES[name](jax.random.key(3))
    old = ENTRIES[name](jax.random.PRNGKey(3))
    jax.tree.map(np.testing.assert_array_equal, new, old)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_noise_of_a_round_is_that_of_its_own_run(make):
    """A key is no state of a defense: other run keys draw other noise."""
    noise = lambda key: defenses.gaussian_noise(key, 1.0)  # noqa: E731
    made = federated.make([(lambda view: ZEROS, 2)], defense=noise)
    state = made.init(make(0), ZEROS, 2)
    assert not jax.tree.leaves(state.defense_state)
    draws = [
        made.step(make(seed), state, ZEROS_OF_TWO, jnp.arange(2), jnp.ones(2))[1]
        for seed in (1, 2)
    ]
    one, other = (np.ravel(seen.updates["leaf"]) for seen in draws)
    assert np.all(one != other)


@pytest.mark.parametrize(
    "use",
    [
        lambda key: keys.typed(key),
        lambda key: invertjax.invert(key, _attack()),
        lambda key: defenses.gaussian_noise(key, 1.0),
        lambda key: _round(key),
    ],
)
@pytest.mark.parametrize("key", [0, np.arange(2), jnp.zeros(3, jnp.uint32)])
def test_what_is_no_key_is_named(use, key):
    with pytest.raises(
        ValueError, match=r"Expected key=.* to be a key: jax.random.key"
    ):
        use(key)
