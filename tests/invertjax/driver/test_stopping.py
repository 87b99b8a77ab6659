"""When trials stop: the rules by hand, and what they save in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invertjax import driver, matching
from invertjax.base import Candidate, Stop
from invertjax.driver import stopping

STEPS = 40
NAN, INF = np.nan, np.inf


def keep(rule, now, before=None, going=None):
    """What goes on of one target's restarts."""
    now = np.array([now], float)
    before = np.full(now.shape, INF) if before is None else np.array([before], float)
    going = np.ones(now.shape, bool) if going is None else np.array([going], bool)
    return rule.keep(now, before, going)[0].astype(int).tolist()


@pytest.mark.parametrize(
    "now, going, expected",
    [
        ([4, 1, 3, 2], [1, 1, 1, 1], [0, 1, 0, 1]),
        ([3, 1, 2], [1, 1, 1], [0, 1, 1]),  # of an odd number the larger half
        ([4, 1, 3, 2], [1, 0, 1, 1], [0, 0, 1, 1]),  # the dropped stay dropped
        ([4, 1, 3, 2], [0, 0, 1, 0], [0, 0, 1, 0]),  # the last one goes on
        ([NAN, 9, INF, 8], [1, 1, 1, 1], [0, 1, 0, 1]),
        ([NAN, NAN], [1, 1], [1, 0]),
        ([5, 5, 5, 5], [1, 1, 1, 1], [1, 1, 0, 0]),  # of equals the first
    ],
)
def test_halving_keeps_the_better_half(now, going, expected):
    assert keep(stopping.halving(), now, going=going) == expected


def test_halving_judges_every_target_alone():
    now = np.array([[1.0, 2.0], [40.0, 30.0]])
    kept = stopping.halving().keep(now, np.full((2, 2), INF), np.ones((2, 2), bool))
    np.testing.assert_array_equal(kept, [[True, False], [False, True]])


@pytest.mark.parametrize(
    "now, before, expected",
    [
        (1.0, INF, 1),  # nothing to compare with
        (0.8, 1.0, 1),
        (0.95, 1.0, 0),
        (1.0, 1.0, 0),
        (0.0, 0.0, 0),
        (-1.0, -1.0, 0),
        (-1.2, -1.0, 1),
        (INF, INF, 0),  # never finite
        (NAN, 1.0, 1),  # not a plateau
    ],
)
def test_plateau_stops_what_no_longer_falls(now, before, expected):
    rule = stopping.plateau(tolerance=0.1)
    assert keep(rule, [now], [before]) == [expected]
    assert keep(rule, [now], [before], [0]) == [0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: stopping.halving(()), r"shares=\(\)"),
        (lambda: stopping.halving((0.5, 0.25)), r"shares=\(0.5, 0.25\)"),
        (lambda: stopping.halving((0.5, 0.5)), r"shares=\(0.5, 0.5\)"),
        (lambda: stopping.halving((0.0, 0.5)), r"shares=\(0.0, 0.5\)"),
        (lambda: stopping.halving((0.5, 1.0)), r"shares=\(0.5, 1.0\)"),
        (lambda: stopping.plateau(1.0), "tolerance=1.0"),
        (lambda: stopping.plateau(-0.1), "tolerance=-0.1"),
        (lambda: stopping.plateau(checks=1), "checks=1"),
    ],
)
def test_impossible_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def make_bowl(shared, trial):
    """(z - trial)^2 from a start that differs by key."""
    del shared
    candidate = Candidate(jax.random.normal, lambda z: {"z": z}, lambda z: z)
    return matching.minimise(
        lambda z, t: (z - trial) ** 2, candidate, optax.sgd(0.02), steps=STEPS
    )


@pytest.fixture(scope="module")
def bowl():
    """A program, its arguments, and what it finds without a rule."""
    keys = jax.random.split(jax.random.key(3), (2, 4))
    arguments = None, jnp.array([3.0, -2.0]), keys
    program = driver.build(make_bowl, *arguments)
    return program, arguments, driver.run(program, *arguments).results


def test_a_run_that_halves_finds_the_same_for_less(bowl):
    # On a bowl the order of the restarts never changes: halving cannot err.
    program, arguments, whole = bowl
    found = driver.run(program, *arguments, rule=stopping.halving((0.25, 0.5))).results
    steps = np.sort(found.steps, axis=1)
    np.testing.assert_array_equal(steps, [[10, 10, 20, 40]] * 2)
    last = found.steps == STEPS
    np.testing.assert_array_equal(found.stopped[last], Stop.BUDGET)
    np.testing.assert_array_equal(found.stopped[~last], Stop.DROPPED)
    np.testing.assert_array_equal(found.losses[last], whole.losses[last])
    jax.tree.map(np.testing.assert_array_equal, driver.best(found), driver.best(whole))


def test_a_dropped_trial_returns_its_best_so_far(bowl):
    program, arguments, whole = bowl
    found = driver.run(program, *arguments, rule=stopping.halving((0.5,))).results
    dropped = found.stopped == Stop.DROPPED
    assert dropped.sum() == 4
    assert np.isinf(found.losses[dropped][:, 20:]).all()
    np.testing.assert_array_equal(
        found.loss[dropped], whole.losses[dropped][:, :20].min(1)
    )


def test_a_run_stops_at_a_plateau(bowl):
    # A step of 0.02 shrinks the objective by 0.96^2: a tenth of 40 steps by 0.72.
    program, arguments, _ = bowl
    for tolerance, steps, reason in (
        (0.2, STEPS, Stop.BUDGET),
        (0.4, 8, Stop.PLATEAU),
    ):
        rule = stopping.plateau(tolerance)
        found = driver.run(program, *arguments, rule=rule).results
        np.testing.assert_array_equal(found.steps, steps)
        np.testing.assert_array_equal(found.stopped, reason)


def test_a_rule_does_not_hide_that_a_trial_was_not_finite(bowl):
    program, (shared, _, keys), _ = bowl
    for rule in (stopping.halving(), stopping.plateau()):
        found = driver.run(program, shared, jnp.array([NAN, 2.0]), keys, rule=rule)
        np.testing.assert_array_equal(found.results.stopped[0], Stop.NOTHING)
        assert (found.results.stopped[1] != Stop.NOTHING).all()
