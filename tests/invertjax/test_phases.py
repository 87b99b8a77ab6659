"""Two attacks in turn, against one that does what both would do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invertjax import candidates, driver, matching, phases
from invertjax.base import Stop
from invertjax.each import each

SHAPE = (1, 2, 2, 1)
FIRST, SECOND = 7, 5


def _towards(target, steps, candidate, rate=0.1):
    """Gradient descent on a paraboloid: each step leaves 1 - 2 * rate of the error."""

    def objective(z, t):
        del t
        return jnp.sum((z["image"] - target) ** 2)

    return matching.minimise(objective, candidate, optax.sgd(rate), steps=steps)


def _both():
    grey = candidates.pixels(SHAPE, jnp.zeros(1, int), init=candidates.grey)

    def second(batch):
        start = grey._replace(init=lambda key: {"image": batch["image"]})
        return _towards(3.0, SECOND, start)

    return phases.then(_towards(1.0, FIRST, grey), second)


def _iterates(start, target, steps):
    """Those whose objective was computed: before each step."""
    return [target + 0.8**i * (start - target) for i in range(steps)]


EARLY = _iterates(0.5, 1.0, FIRST)
LATE = _iterates(EARLY[-1], 3.0, SECOND)  # the best of the first is its last


@pytest.mark.parametrize("portions", [(12,), (1,) * 12, (6, 6), (7, 5), (4, 7, 9)])
def test_portions_do_not_matter(portions):
    attack = _both()
    assert attack.steps == FIRST + SECOND
    state = jax.jit(attack.init)(jax.random.key(0))
    advance = jax.jit(attack.advance)
    for n in portions:
        state = advance(state, jnp.array(n))
    found = jax.jit(attack.result)(state)
    np.testing.assert_allclose(found.batch["image"], LATE[-1], rtol=1e-6)
    assert int(found.steps) == 12 and int(found.stopped) == Stop.BUDGET
    errors = [1.0 - value for value in EARLY] + [3.0 - value for value in LATE]
    np.testing.assert_allclose(found.losses, 4 * np.square(errors), rtol=1e-5)
    np.testing.assert_allclose(state.best_loss, found.loss)


def test_what_was_found_early_is_a_result():
    attack = _both()
    state = attack.advance(attack.init(jax.random.key(0)), jnp.array(3))
    found = attack.result(state)
    assert int(found.stopped) == Stop.INTERRUPTED and int(found.steps) == 3
    np.testing.assert_allclose(state.best_loss, 4 * (1 - EARLY[2]) ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.batch["image"], EARLY[2], rtol=1e-6)


def test_what_is_computed_once_is_known_at_every_step():
    def make(known):
        grey = candidates.pixels(SHAPE, jnp.zeros(1, int), init=candidates.grey)
        return _towards(known["target"], FIRST, grey)

    attack = phases.prepared(lambda: {"target": jnp.array(1.0)}, make)
    assert attack.steps == FIRST
    found = driver.invert(jax.random.key(0), attack)
    np.testing.assert_allclose(found.batch["image"], EARLY[-1], rtol=1e-6)


def test_each_problem_has_its_own_steps():
    """One of them would not be finite, and costs the others nothing."""

    def make(target):
        grey = candidates.pixels(SHAPE, jnp.zeros(1, int), init=candidates.grey)
        return _towards(target, FIRST, grey)

    targets = jnp.array([1.0, 3.0, jnp.nan])
    attack = each(make, targets)
    state = attack.advance(attack.init(jax.random.key(0)), jnp.array(FIRST))
    found = attack.result(state)
    assert found.batch["image"].shape == (3, 2, 2, 1) and attack.steps == FIRST
    for i, goal in enumerate((1.0, 3.0)):
        expected = _iterates(0.5, goal, FIRST)[-1]
        np.testing.assert_allclose(found.batch["image"][i], expected, rtol=1e-6)
    np.testing.assert_allclose(found.batch["image"][2], 0.5)  # its start
    assert int(found.steps) == FIRST and not np.any(found.certified)


def test_the_driver_runs_it_as_any_attack():
    attack = _both()
    found = driver.invert(jax.random.key(0), attack, restarts=2)
    np.testing.assert_allclose(found.batch["image"], LATE[-1], rtol=1e-5)
