"""Groups, chunks, interruptions and choice, mostly on a quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.quadratic import STEPS, TARGETS, assert_close, make_quadratic

import invertjax
from invertjax import driver, matching, priors
from invertjax.base import Candidate, Result, Stop


def problem(targets=5, restarts=2):
    keys = jax.random.split(jax.random.key(0), (targets, restarts))
    return jnp.array(1.0), {"target": TARGETS[:targets]}, keys


def build(arguments, width, make=make_quadratic):
    return driver.build(make, *arguments, width=width)


@pytest.fixture(scope="module")
def one_by_one():
    """A program of width 1; most tests share its compilation."""
    return build(problem(), 1)


def test_groups_of_any_width_give_the_same_results(one_by_one):
    arguments = problem()
    expected = driver.run(one_by_one, *arguments).results
    assert expected.loss.shape == (5, 2)
    assert expected.losses.shape == (5, 2, STEPS)
    np.testing.assert_allclose(
        expected.batch["z"], jnp.broadcast_to(TARGETS[:, None], (5, 2, 3)), atol=0.1
    )
    for width in (2, 5):  # 5 targets are two groups of 2, and one that is filled up
        got = driver.run(build(arguments, width), *arguments).results
        jax.tree.map(assert_close, got, expected)


def test_an_attack_is_traced_only_while_it_is_built():
    traced = []

    def make(shared, trial):
        traced.append(trial["target"].shape)
        return make_quadratic(shared, trial)

    program = build(problem(), 2, make)
    built = len(traced)
    assert set(traced) == {(3,)}  # one target a trace, whatever the width
    driver.run(program, *problem())
    shared, trials, keys = problem()
    more = {"target": jnp.concatenate([trials["target"]] * 2)}
    driver.run(program, 2 * shared, more, jnp.concatenate([keys, problem()[2]]))
    assert len(traced) == built
    build(problem(targets=3), 2, make)
    assert len(traced) == 2 * built  # and as often for fewer targets


def test_wide_on_accelerators_narrow_on_a_cpu():
    expected = 1 if jax.default_backend() == "cpu" else 5
    assert build(problem(), None).width == expected
    assert build(problem(), 9).width == 5


def test_trials_that_do_not_fit_side_by_side_are_split():
    def make(shared, trial):
        def large(z, t):  # a matrix for every trial that is under way
            matrix = z[0] * jnp.ones((256, 256))
            return jnp.sum((z - trial["target"]) ** 2) + jnp.mean(matrix @ matrix)

        attack = make_quadratic(shared, trial)
        candidate = Candidate(lambda key: attack.init(key).z, lambda z: z, lambda z: z)
        return matching.minimise(large, candidate, optax.sgd(0.01), steps=3)

    arguments = problem(targets=1, restarts=8)
    whole = driver.build(make, *arguments, at_once=8)
    assert whole.layout.at_once == 8
    split = driver.build(make, *arguments, at_once=8, memory_limit=whole.bytes / 2)
    assert 1 <= split.layout.at_once < 8
    assert split.bytes <= whole.bytes / 2
    assert f"{split.layout.at_once} at once" in str(split.layout)
    results = [driver.run(program, *arguments).results for program in (whole, split)]
    assert_close(results[0].loss, results[1].loss)
    with pytest.raises(MemoryError, match="One target with its 8 restarts needs"):
        driver.build(make, *arguments, memory_limit=10)


def test_progress_adds_up_to_the_total(one_by_one):
    seen, groups = [], []
    run = driver.run(
        one_by_one,
        *problem(),
        chunk_seconds=10.0,
        on_chunk=seen.append,
        on_group=lambda rows, results: groups.append((rows, results)),
    )
    done = [progress.done for progress in seen]
    assert done == sorted(set(done))
    assert done[-1] == 5 * STEPS
    assert {progress.total for progress in seen} == {5 * STEPS}
    assert {STEPS * row for row in range(1, 6)} <= set(done)
    assert len(done) > 2 * 5  # more than a chunk a group
    assert all(p.losses.shape == (1, 2) for p in seen)
    seconds = [progress.seconds for progress in seen]
    assert 0 < seconds[0]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= run.seconds
    assert [rows for rows, _ in groups] == [range(i, i + 1) for i in range(5)]
    stacked = jnp.concatenate([results.loss for _, results in groups])
    np.testing.assert_array_equal(stacked, run.results.loss)


def test_rows_of_a_group_that_is_not_full():
    groups = []
    program = build(problem(), 2)
    driver.run(
        program,
        *problem(),
        on_group=lambda rows, results: groups.append((rows, results.loss.shape)),
    )
    assert groups == [
        (range(0, 2), (2, 2)),
        (range(2, 4), (2, 2)),
        (range(4, 5), (1, 2)),
    ]


def test_an_interruption_keeps_the_best_so_far(one_by_one):
    def interrupt(progress):
        if progress.done > 2 * STEPS:  # in the third group
            raise KeyboardInterrupt

    arguments = problem()
    run = driver.run(one_by_one, *arguments, on_chunk=interrupt)
    whole = driver.run(one_by_one, *problem()).results
    assert run.results.loss.shape == (3, 2)
    np.testing.assert_array_equal(
        run.results.stopped, [[Stop.BUDGET] * 2] * 2 + [[Stop.INTERRUPTED] * 2]
    )
    complete = [jax.tree.map(lambda leaf: leaf[:2], r) for r in (run.results, whole)]
    jax.tree.map(np.testing.assert_array_equal, *complete)
    last = jax.tree.map(lambda leaf: leaf[2], run.results)
    steps = int(last.steps[0])
    assert 0 < steps < STEPS
    np.testing.assert_array_equal(last.losses[:, :steps], whole.losses[2, :, :steps])
    assert jnp.isinf(last.losses[:, steps:]).all()
    np.testing.assert_array_equal(last.loss, last.losses[:, :steps].min(1))
    gap = last.batch["z"] - TARGETS[2][None]
    np.testing.assert_allclose(last.loss, (gap**2).sum(1), rtol=1e-5)


def test_an_interruption_between_chunks_keeps_what_is_complete(one_by_one):
    def interrupt(rows, results):
        if rows[0] == 1:
            raise KeyboardInterrupt

    results = driver.run(one_by_one, *problem(), on_group=interrupt).results
    np.testing.assert_array_equal(results.stopped, jnp.full((2, 2), Stop.BUDGET))

    def broken(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # there is nothing to return
        driver.run(one_by_one._replace(init=broken), *problem())


def test_a_closed_form_needs_no_chunks():
    def make(shared, trial):
        closed = make_quadratic(shared, trial)
        return closed._replace(steps=0)

    seen = []
    program = build(problem(), 5, make)
    run = driver.run(program, *problem(), on_chunk=seen.append)
    assert not seen
    np.testing.assert_array_equal(run.results.steps, 0)


def results(losses):
    """Results `[N, R]` whose batch and steps say which restart they are."""
    losses = jnp.asarray(losses)
    rank = jnp.broadcast_to(jnp.arange(losses.shape[1])[None], losses.shape)
    return Result({"image": rank}, losses, losses[..., None], rank, rank)


def test_the_best_restart_has_the_lowest_objective_and_never_nan():
    nan, inf = jnp.nan, jnp.inf
    found = results(
        [[3, 1, 2], [nan, 5, inf], [inf, nan, 7], [nan, nan, nan], [inf, nan, inf]]
    )
    best = driver.best(found)
    np.testing.assert_array_equal(best.batch["image"][:3], [1, 1, 2])
    np.testing.assert_array_equal(best.loss[:3], [1, 5, 7])
    np.testing.assert_array_equal(best.losses[:3, 0], [1, 5, 7])
    np.testing.assert_array_equal(driver.failed(found), [False] * 3 + [True] * 2)


def test_invert_returns_the_best_of_its_restarts():
    # The wells of (z^2 - 1)^2 + z / 4 are at about -1.03 (lower) and 0.97.
    def objective(z, t):
        del t
        return jnp.sum((z**2 - 1) ** 2 + z / 4)

    candidate = Candidate(lambda key: jax.random.normal(key), lambda z: z, lambda z: z)
    attack = matching.minimise(objective, candidate, optax.sgd(0.05), steps=60)
    # Single starts end in either well...
    seeds = range(4)
    single = [attack.init(jax.random.key(seed)) for seed in seeds]
    assert {bool(state.z > 0) for state in single} == {True, False}
    # ... and of eight, the lower one wins.
    seen = []
    result = invertjax.invert(
        jax.random.key(0), attack, restarts=8, on_chunk=seen.append
    )
    np.testing.assert_allclose(result.batch, -1.03, atol=0.01)
    assert result.loss < -0.25
    assert result.losses.shape == (60,)
    assert seen[-1].done == seen[-1].total == 60


def test_restarts_share_an_axis_for_priors():
    consistency = priors.group_consistency(1.0)

    def make(shared, trial):
        candidate = Candidate(
            lambda key: {"image": jax.random.normal(key, (2,))},
            lambda z: z,
            lambda z: z,
        )
        objective = lambda z, t: consistency(z, t) + 0 * trial["target"].sum()  # noqa: E731
        return matching.minimise(objective, candidate, optax.sgd(0.1), steps=STEPS)

    arguments = problem(targets=2, restarts=3)
    found = driver.run(build(arguments, 2, make), *arguments).results.batch["image"]
    spread = found.std(1)
    assert (spread < 0.1).all()
    # Each target has a mean of its own.
    assert float(jnp.abs(found.mean(1)[0] - found.mean(1)[1]).max()) > 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, k: (t, k[:, 0]), r"keys of shape \[N, R\].*got \(5,\)"),
        (lambda t, k: (t, k[:, :0]), r"keys of shape \[N, R\].*got \(5, 0\)"),
        (lambda t, k: (t, k[:4]), r"N=4 rows, got shape \(5, 3\)"),
        (lambda t, k: ({**t, "rate": 0.1}, k), r"N=5 rows, got shape \(\)"),
    ],
)
def test_trials_and_keys_that_do_not_fit(one_by_one, change, message):
    shared, trials, keys = problem()
    trials, keys = change(trials, keys)
    with pytest.raises(ValueError, match=message):
        driver.build(make_quadratic, shared, trials, keys)
    with pytest.raises(ValueError, match=message):
        driver.run(one_by_one, shared, trials, keys)


def test_widths_and_restarts_below_one():
    with pytest.raises(ValueError, match="width=0 >= 1"):
        build(problem(), 0)
    attack = make_quadratic(1.0, {"target": TARGETS[0]})
    with pytest.raises(ValueError, match="restarts=0 >= 1"):
        invertjax.invert(jax.random.key(0), attack, restarts=0)
