"""Damped Gauss-Newton steps, as an optax optimiser.

Near an iterate the residual is r + J s, and a step s solves

    (J^T J + damping * mean diag(J^T J)) s = -gradient

(Levenberg 1944; Marquardt 1963). J is never stored: J v is a forward, J^T u a reverse
derivative. Conjugate gradients solve the system from such products; where they do not
get there in their budget and the unknowns are few enough, J^T J is computed, column by
column, from the same products, and its Cholesky factor preconditions what follows, for
every damping, until it is too old. So its rounding and its age cost iterations, not
accuracy: in float32 J^T J alone would lose the directions whose singular values are
below 3e-4 of the largest.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from invertjax.base import Point
from invertjax.solvers import side_by_side
from invertjax.solvers.conjugate_gradients import Solution, conjugate_gradients, dot
from invertjax.trees import squared_norm

LEAST = 1e-12  # damping; less makes no difference, not even in float64
HOPELESS = 1e4  # damping; with more, a step is too short to matter
ACCEPTED = 0.1  # share of the predicted decrease that a step must achieve


class State(NamedTuple):
    """What a trial knows after a step.

    damping: `[]`, relative to the mean diagonal of J^T J.
    gram: `[d, d]`, J^T J where it was last computed; None where it never is.
    known: `[]` bool, whether it was computed at all.
    steps: `[]` int32, taken so far.
    iterations: `[]` int32, of conjugate gradients in all trials so far.
    stalled: `[]` bool, whether no step decreased the objective.
    """

    damping: jax.Array
    gram: Any
    known: jax.Array
    steps: jax.Array
    iterations: jax.Array
    stalled: jax.Array


class _Problem(NamedTuple):
    """The least-squares problem around one iterate, all flat."""

    push: Callable  # v -> J v, a pytree
    product: Callable  # v -> J^T J v
    gradient: jax.Array
    scale: jax.Array  # of the damping


def levenberg_marquardt(
    *,
    damping: float = 1e-2,
    iterations: int = 200,
    preconditioned: int = 60,
    dense: int = 6_144,
    cheap: int = 0,
    columns: int = 64,
    tolerance: float = 1e-3,
    trials: int = 8,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimiser of Levenberg-Marquardt steps on the residual it is given.

    `update` takes the extra arguments `value` `[]` and `value_fn` `z -> []` (the
    objective), `residual_fn` `z -> pytree` (the objective's curvature is that of half
    its sum of squares; its gradient need not be), and `project` `z -> z`. It returns
    the step after projection, or zero if none of its trials decreased the objective.

    Args:
      damping: at the start, relative to the mean diagonal of J^T J.
      iterations: of conjugate gradients in a trial without J^T J; two products each.
      preconditioned: of conjugate gradients in a trial with it.
      dense: the most unknowns d for which J^T J may be computed, which takes d^2
        numbers and the work of about d iterations.
      cheap: steps at the start that do without it even then.
      columns: of J^T J at once.
      tolerance: conjugate gradients stop at this share of the gradient's norm.
      trials: dampings in a step; each is eight times the last.
    """
    solve = functools.partial(
        _solve,
        iterations=iterations,
        preconditioned=preconditioned,
        tolerance=tolerance,
    )

    def init(params: Point) -> State:
        flat, _ = ravel_pytree(params)
        side = flat.size
        return State(
            damping=jnp.array(damping, flat.dtype),
            gram=jnp.zeros((side, side), flat.dtype) if side <= dense else None,
            known=jnp.array(False),
            steps=jnp.array(0, jnp.int32),
            iterations=jnp.array(0, jnp.int32),
            stalled=jnp.array(False),
        )

    def update(
        updates: Point, state: Any, params: Point | None = None, **given: Any
    ) -> tuple[Point, State]:
        flat, unravel = ravel_pytree(params)
        residual_fn, gradient = given["residual_fn"], ravel_pytree(updates)[0]
        problem = _linearised(residual_fn, flat, unravel, gradient)
        gram, known, first = state.gram, state.known, None
        if gram is not None:
            first = solve(problem, gram, known, state.damping)
            first = first._replace(solved=first.solved | (state.steps < cheap))
            gram = side_by_side.where(
                ~first.solved, lambda: _gram(problem.product, flat, columns), gram
            )
            known = known | ~first.solved

        def trial(carry: Any) -> Any:
            n, damp, _, _, spent = carry
            step, used, _ = _unless_done(
                n, first, lambda: solve(problem, gram, known, damp)
            )
            there = given["project"](unravel(flat + step))
            step = ravel_pytree(there)[0] - flat
            decrease = given["value"] - given["value_fn"](there)
            ratio = decrease / _predicted(problem, step)
            good = ratio > ACCEPTED  # False for NaN, and where no decrease is predicted
            damp = jnp.where(good, _relaxed(damp, ratio), 8 * damp)
            return n + 1, damp, step, good, spent + used

        start = (0, state.damping, flat, jnp.array(False), state.iterations)
        _, damp, step, good, spent = jax.lax.while_loop(
            lambda carry: (carry[0] < trials) & ~carry[3], trial, start
        )
        stalled = ~good & (damp > HOPELESS)
        damp = jnp.where(stalled, damping, damp)  # the next objective may be another
        return (
            unravel(jnp.where(good, step, 0.0)),
            State(damp, gram, known, state.steps + 1, spent, stalled),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _unless_done(
    n: jax.Array, first: Solution | None, solve: Callable[[], Solution]
) -> Solution:
    if first is None:
        return solve()
    return side_by_side.where((n > 0) | ~first.solved, solve, first)


def _linearised(
    residual_fn: Callable[[Point], Any],
    flat: jax.Array,
    unravel: Callable[[jax.Array], Point],
    gradient: jax.Array,
) -> _Problem:
    _, push = jax.linearize(lambda v: residual_fn(unravel(v)), flat)
    pull = jax.linear_transpose(push, flat)
    # The expectation over random signs of |J signs|^2 is the trace of J^T J.
    signs = jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype)
    scale = squared_norm(push(signs)) / flat.size
    return _Problem(push, lambda v: pull(push(v))[0], gradient, scale)


def _gram(product: Callable, flat: jax.Array, columns: int) -> jax.Array:
    unit = jnp.eye(flat.size, dtype=flat.dtype)
    gram = jax.lax.map(product, unit, batch_size=min(columns, flat.size))
    return 0.5 * (gram + gram.T)


def _solve(
    problem: _Problem,
    gram: jax.Array | None,
    known: jax.Array,
    damp: jax.Array,
    *,
    iterations: int,
    preconditioned: int,
    tolerance: float,
) -> Solution:
    """Solves for the step under a damping."""
    shift = damp * problem.scale

    def damped(v: jax.Array) -> jax.Array:
        return problem.product(v) + shift * v

    def plain() -> Solution:
        return conjugate_gradients(
            damped, -problem.gradient, lambda v: v, iterations, tolerance
        )

    if gram is None:
        step, used, _ = plain()
        return Solution(step, used, jnp.array(True))

    def with_gram() -> Solution:
        factor = jnp.linalg.cholesky(
            gram + shift * jnp.eye(len(gram), dtype=gram.dtype)
        )

        def precondition(v: jax.Array) -> jax.Array:
            return jax.scipy.linalg.cho_solve((factor, True), v)

        return conjugate_gradients(
            damped, -problem.gradient, precondition, preconditioned, tolerance
        )

    none = Solution(jnp.zeros_like(problem.gradient), jnp.array(0), jnp.array(False))
    return side_by_side.where(known, with_gram, side_by_side.where(~known, plain, none))


def _predicted(problem: _Problem, step: jax.Array) -> jax.Array:
    """Returns the decrease that the model predicts; NaN if it predicts none."""
    found = -dot(problem.gradient, step) - 0.5 * squared_norm(problem.push(step))
    return jnp.where(found > 0, found, jnp.nan)


def _relaxed(damp: jax.Array, ratio: jax.Array) -> jax.Array:
    factor = jnp.select(
        [ratio > 0.75, ratio > 0.5, ratio > 0.25], [0.05, 0.2, 1.0], 4.0
    )
    return jnp.maximum(damp * factor.astype(damp.dtype), LEAST)
