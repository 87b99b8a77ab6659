"""Damped Gauss-Newton steps on problems whose solution is known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invertjax import matching
from invertjax.base import Candidate, Stop
from invertjax.solvers.levenberg_marquardt import (
    _linearised,
    _predicted,
    _solve,
    levenberg_marquardt,
)

EQUATIONS, UNKNOWNS, STEPS = 40, 20, 25
PRECONDITIONED, PURE = 100, 0  # unknowns up to which J^T J may be computed


class Linear(NamedTuple):
    """min |A z - b|^2 / 2 in a box; not a number where z[0] > edge."""

    matrix: np.ndarray
    right: np.ndarray
    start: np.ndarray
    low: np.float32 = np.float32(-np.inf)
    high: np.float32 = np.float32(np.inf)
    edge: np.float32 = np.float32(np.inf)


class Trace(NamedTuple):
    """Of every step: the iterate before it, its objective, the step, what it left."""

    z: jax.Array
    value: jax.Array
    step: jax.Array
    damping: jax.Array
    iterations: jax.Array
    stalled: jax.Array
    known: jax.Array


def steps(optimizer, value_fn, residual_fn, project, z):
    """Drives the optimiser itself, `STEPS` times."""

    def step(carry, _):
        z, state = carry
        value, grad = jax.value_and_grad(value_fn)(z)
        delta, new = optimizer.update(
            grad, state, z,
            value=value, value_fn=value_fn, residual_fn=residual_fn, project=project,
        )  # fmt: skip
        row = Trace(
            z, value, delta, new.damping, new.iterations, new.stalled, new.known
        )
        return (optax.apply_updates(z, delta), new), row

    return jax.lax.scan(step, (z, optimizer.init(z)), length=STEPS)[1]


def linear(problem, *, dense, trials=8, cheap=0):
    def residual(z):
        product = jnp.matmul(problem.matrix, z, precision=jax.lax.Precision.HIGHEST)
        return {"residual": product - problem.right}

    def value(z):
        half = 0.5 * jnp.sum(residual(z)["residual"] ** 2)
        return jnp.where(z[0] > problem.edge, jnp.nan, half)

    return steps(
        levenberg_marquardt(dense=dense, trials=trials, cheap=cheap),
        value,
        residual,
        lambda z: jnp.clip(z, problem.low, problem.high),
        problem.start,
    )


solve = jax.jit(linear, static_argnames=("dense", "trials", "cheap"))


def random_problem(seed, smallest=0.1, noise=0.1):
    """Singular values from 1 to `smallest`; `noise` is the share nobody can fit."""
    normal = np.random.default_rng(seed).standard_normal
    left, _ = np.linalg.qr(normal((EQUATIONS, UNKNOWNS)))
    right, _ = np.linalg.qr(normal((UNKNOWNS, UNKNOWNS)))
    matrix = left * np.geomspace(1, smallest, UNKNOWNS) @ right
    matrix = matrix.astype(np.float32)
    shift = noise * normal(EQUATIONS)
    target = matrix @ normal(UNKNOWNS) + shift
    return Linear(matrix, target.astype(np.float32), np.zeros(UNKNOWNS, np.float32))


def exact(problem):
    matrix, right = (a.astype(np.float64) for a in (problem.matrix, problem.right))
    return np.linalg.lstsq(matrix, right)[0]


def error(z, problem):
    wanted = exact(problem)
    return np.linalg.norm(z - wanted) / np.linalg.norm(wanted)


def never_rises(trace):
    """But by the rounding of two programs: some eps of 1.2e-7 of its first value."""
    return (np.diff(trace.value) <= 1e-6 * trace.value[0]).all()


@pytest.mark.parametrize("dense", [PURE, PRECONDITIONED])
def test_the_minimiser_of_a_linear_problem(dense):
    problem = random_problem(0)
    trace = solve(problem, dense=dense)
    # Rounding of the gradient, 1e-7, over the smallest curvature, 1e-2.
    assert error(trace.z[-1], problem) < 1e-5
    assert never_rises(trace)
    # A model that is exact is trusted more and more.
    assert (np.diff(trace.damping[:3]) < 0).all()


def test_two_problems_side_by_side():
    problems = [random_problem(seed, smallest) for seed, smallest in ((0, 0.1), (1, 1))]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
    traces = jax.jit(jax.vmap(functools.partial(linear, dense=PRECONDITIONED)))(both)
    for z, problem in zip(traces.z[:, -1], problems, strict=True):
        assert error(z, problem) < 1e-5


def test_an_ill_conditioned_problem_in_float32():
    problem = random_problem(2, smallest=1e-4, noise=0.0)
    gram = problem.matrix.T @ problem.matrix
    naive = np.linalg.solve(gram, problem.matrix.T @ problem.right)
    assert error(naive, problem) > 0.03
    preconditioned = solve(problem, dense=PRECONDITIONED)
    assert error(preconditioned.z[-1], problem) < 0.003
    pure = solve(problem, dense=PURE)
    assert preconditioned.iterations[-1] < 0.5 * pure.iterations[-1]


def test_the_first_steps_are_cheap_ones():
    problem = random_problem(2, smallest=1e-4, noise=0.0)
    trace = solve(problem, dense=PRECONDITIONED, cheap=3)
    assert not trace.known[:3].any() and trace.known[-1]
    pure = solve(problem, dense=PURE)
    np.testing.assert_allclose(trace.value[:4], pure.value[:4], rtol=1e-3)
    assert trace.iterations[-1] < pure.iterations[-1]


def test_steps_stay_in_the_box():
    problem = random_problem(3, smallest=0.5)
    high = 0.5 * np.abs(exact(problem)).max().astype(np.float32)
    trace = solve(problem._replace(low=-high, high=high), dense=PRECONDITIONED)
    assert (abs(trace.z + trace.step) <= high).all()  # the step is the projected one
    assert trace.value[-1] < 0.5 * trace.value[0]
    assert never_rises(trace)
    assert 0 < (abs(trace.z[-1]) == high).sum() < UNKNOWNS


def beyond(problem, share):
    """The problem with its solution at z[0] = 1 and the edge at `share` of the way."""
    wanted = exact(problem)
    matrix = problem.matrix.copy()
    matrix[:, 0] *= wanted[0]
    return problem._replace(matrix=matrix, edge=np.float32(share))


def test_what_is_not_finite_is_never_accepted():
    problem = beyond(random_problem(4, smallest=0.5), 0.5)
    trace = solve(problem, dense=PRECONDITIONED)
    assert np.isfinite(trace.value).all()
    assert (trace.z[:, 0] <= 0.5).all()
    assert trace.value[-1] < 0.5 * trace.value[0]


def test_a_rejected_step_is_zero_and_a_stall_starts_afresh():
    problem = beyond(random_problem(5), 0.5)
    start = exact(problem).astype(np.float32)
    start[0] = 0.5  # every way down leads over the edge
    trace = solve(problem._replace(start=start), dense=PRECONDITIONED)
    assert np.isfinite(trace.value[0])
    np.testing.assert_array_equal(trace.step, 0)
    assert trace.stalled.all()  # eight dampings up to 2e5
    np.testing.assert_allclose(trace.damping, 1e-2, rtol=1e-6)
    few = solve(problem._replace(start=start), dense=PRECONDITIONED, trials=2)
    np.testing.assert_allclose(few.damping[:2], [0.64, 0.64 * 64], rtol=1e-6)
    np.testing.assert_array_equal(few.step, 0)
    assert not few.stalled[0]


def test_rosenbrock():
    """A narrow bent valley: 10 (y - x^2) and 1 - x, from the wrong end of it."""

    def residual(z):
        return jnp.stack([10 * (z[1] - z[0] ** 2), 1 - z[0]])

    def value(z):
        return 0.5 * jnp.sum(residual(z) ** 2)

    start = jnp.array([-1.2, 1.0])
    lm = levenberg_marquardt()
    trace = jax.jit(lambda z: steps(lm, value, residual, lambda z: z, z))(start)
    np.testing.assert_allclose(trace.z[-1], 1.0, atol=1e-5)
    assert never_rises(trace)


# Through the engine: the objective of the first half of the run is another one.


FIRST, LAST = 3.0, -2.0  # where the minima are


def halves(z, t):
    """Minimum 0 at 3 up to t = 1/2, then 1 at -2."""
    early = t < 0.5
    fit = 0.5 * jnp.sum((z - jnp.where(early, FIRST, LAST)) ** 2)
    return fit + jnp.where(early, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames=("steps", "rank", "converged"))
def run(z, *, steps, rank=None, converged=None):
    schedule = matching.Schedule(
        residual=lambda z, t: z - jnp.where(t < 0.5, FIRST, LAST),
        rank=rank,
        converged=converged,
    )
    candidate = Candidate(lambda key: z, lambda z: z, lambda z: z)
    optimizer = levenberg_marquardt(dense=PURE)
    attack = matching.minimise(
        halves, candidate, optimizer, steps=steps, schedule=schedule
    )
    state = attack.advance(attack.init(jax.random.key(0)), steps)
    return attack.result(state)


def last(z):
    return halves(z, 1.0)


START = jnp.array([0.0, 1.0])


def test_rank_compares_what_the_objective_cannot():
    result = run(START, steps=6, rank=last)
    np.testing.assert_allclose(result.batch, LAST, atol=1e-3)
    np.testing.assert_allclose(result.loss, 1.0, atol=1e-5)
    np.testing.assert_allclose(result.losses[0], halves(START, 0.0))
    assert result.losses[2] < 1e-3 < 1 <= result.losses[3]
    assert result.stopped == Stop.BUDGET
    # Without it the objective of the end is taken, and not that of the first half,
    # which was less. Only a rank also judges the iterate after the last step.
    unranked = run(START, steps=6)
    np.testing.assert_allclose(unranked.batch, LAST, atol=1e-3)


def test_a_stall_does_not_outlast_its_objective():
    # At the first minimum from the start: no step succeeds before the second half.
    result = run(jnp.full(2, FIRST), steps=24, rank=last)
    np.testing.assert_allclose(result.batch, LAST, atol=1e-3)


def test_rank_also_judges_the_iterate_after_the_last_step():
    def first(z):
        return halves(z, 0.0)

    result = run(START, steps=1, rank=first)
    assert result.steps == 1
    assert first(result.batch) < 0.01 * first(START)
    np.testing.assert_allclose(result.loss, first(result.batch), rtol=1e-6)
    # Unless it is worse.
    worse = run(START, steps=1, rank=last)
    np.testing.assert_array_equal(worse.batch, START)
    np.testing.assert_allclose(worse.loss, last(START), rtol=1e-6)
    np.testing.assert_array_equal(run(START, steps=1).batch, START)


def test_the_optimiser_says_when_it_is_done():
    def converged(state, value, t):
        return (t >= 0.5) & (state.stalled | (value < 1 + 1e-4))

    result = run(START, steps=6, rank=last, converged=converged)
    assert result.stopped == Stop.CONVERGED
    assert result.steps == 5  # it took one step more than it needed to know
    np.testing.assert_array_equal(np.isinf(result.losses), np.arange(6) >= 5)
    np.testing.assert_allclose(result.batch, LAST, atol=1e-2)


def test_the_predicted_decrease_is_that_of_a_linear_problem():
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    right, z, step = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (6, 4, 4))

    def residual(z):
        return matrix @ z - right

    def value(z):
        return 0.5 * jnp.sum(residual(z) ** 2)

    gradient = jax.grad(value)(z)
    step = -0.01 * gradient + 0.001 * step
    problem = _linearised(residual, z, lambda flat: flat, gradient)
    found = _predicted(problem, step)
    np.testing.assert_allclose(found, value(z) - value(z + step), rtol=1e-3)
    assert np.isnan(_predicted(problem, -step))


def test_the_factor_of_the_matrix_solves_what_conjugate_gradients_do_not():
    rng = np.random.default_rng(0)
    scales = np.logspace(0, -3, 20)[None]
    matrix = jnp.asarray(rng.normal(size=(40, 20)) * scales, jnp.float32)
    z = jnp.zeros(20)

    def residual(z):
        return matrix @ z - 1.0

    gradient = jax.grad(lambda z: 0.5 * jnp.sum(residual(z) ** 2))(z)
    problem = _linearised(residual, z, lambda flat: flat, gradient)
    solve = functools.partial(
        _solve, problem, matrix.T @ matrix, damp=jnp.float32(1e-6),
        iterations=200, preconditioned=200, tolerance=1e-3,
    )  # fmt: skip
    alone, helped = solve(known=jnp.array(False)), solve(known=jnp.array(True))
    assert helped.solved and helped.used <= 3 < 10 * helped.used < alone.used
