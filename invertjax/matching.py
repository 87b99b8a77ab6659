"""The engine: find a batch whose update would be the one that was observed.

Minimises `distance(share(decode(z)), observed) + prior(decode(z), t)` over z by any
optax optimiser. It knows no attack by name: an attack is a choice of its arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invertjax import distances, priors, updates
from invertjax.base import (
    Attack,
    Candidate,
    Distance,
    Key,
    Objective,
    Point,
    Prior,
    Residual,
    Result,
    Share,
    Stop,
    Update,
    uncertified,
)


class State(NamedTuple):
    """One trial between two steps.

    z: the iterate. opt_state: the optimiser's.
    best: the iterate with the lowest objective so far; best_loss: `[]`, its objective.
    losses: `[steps]`, the objective before each step. step: `[]` int32.
    alive: `[]` bool, False once loss, gradient or step were not finite.
    converged: `[]` bool, True once the optimiser has nothing left to do.
    """

    z: Point
    opt_state: Any
    best: Point
    best_loss: jax.Array
    losses: jax.Array
    step: jax.Array
    alive: jax.Array
    converged: jax.Array


class Schedule(NamedTuple):
    """What an optimiser may need beyond the objective.

    residual: `(z, t) -> pytree`, handed on as `residual_fn`: half its sum of squares
      has the objective's curvature.
    rank: `z -> []`, by which iterates and restarts are compared, where objectives of
      different t do not compare. It also judges the iterate after the last step.
    converged: `(opt_state, value, t) -> []` bool, whether to stop before the budget.
    both: `(z, t) -> ([], [])`, the objective at t and at the end of the run, t = 1, at
      the price of one: by the second, iterates and restarts are compared.
    """

    residual: Residual | None = None
    rank: Callable[[Point], jax.Array] | None = None
    converged: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None
    both: Callable[[Point, jax.Array], tuple[jax.Array, jax.Array]] | None = None


PLAIN = Schedule()


def objective(
    share: Share,
    observed: Update,
    candidate: Candidate,
    distance: Distance,
    prior: Prior,
) -> Objective:
    """Makes the function to minimise, `(z, t) -> []`.

    t in [0, 1] is the share of the run.
    """

    def value(z: Point, t: jax.Array) -> jax.Array:
        batch = candidate.decode(z)
        return distance(share(batch), observed) + prior(batch, t)

    return value


def attack(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    distance: Distance = distances.cosine,
    prior: Prior = priors.none,
) -> Attack:
    """Makes gradient matching an attack.

    Args:
      share: `batch -> update`, e.g. `clients.at(client, params, key)`.
      observed: the update that was shared, pytree like what `share` returns.
      candidate: what is optimised.
      optimizer: any optax optimiser; given `value`, `grad` and `value_fn`.
      steps: the budget.
      distance: between the guess's update and the observed one.
      prior: on the decoded batch.

    Raises:
      ValueError: see `updates.checked`.
    """
    if steps < 1:
        raise ValueError(f"Expected steps={steps} >= 1.")
    observed = updates.checked(share, observed, candidate)
    value = objective(share, observed, candidate, distance, prior)

    def both(z: Point, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = candidate.decode(z)
        data = distance(share(batch), observed)
        return data + prior(batch, t), data + prior(batch, jnp.ones_like(t))

    schedule = Schedule(both=both)
    return minimise(value, candidate, optimizer, steps=steps, schedule=schedule)


def minimise(
    objective: Objective,
    candidate: Candidate,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    schedule: Schedule = PLAIN,
) -> Attack:
    """Minimises any objective over a candidate, with one loop for every optimiser.

    Iterates are compared by the objective at the end of the run, t = 1, since those of
    two weights do not compare. Where the objective depends on t and the schedule says
    nothing of it, that takes a second evaluation of it in every step.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(key: Key) -> State:
        z = candidate.project(candidate.init(key))
        dtype = jax.eval_shape(objective, z, jnp.zeros(())).dtype
        return State(
            z=z,
            opt_state=optimizer.init(z),
            best=z,
            best_loss=jnp.array(jnp.inf, dtype),
            losses=jnp.full(steps, jnp.inf, dtype),
            step=jnp.array(0, jnp.int32),
            alive=jnp.array(True),
            converged=jnp.array(False),
        )

    def advance(state: State, n: jax.Array) -> State:
        until = jnp.minimum(state.step + n, steps)

        def going(state: State) -> jax.Array:
            return state.alive & ~state.converged & (state.step < until)

        def step(state: State) -> State:
            return _step(state, objective, candidate, optimizer, steps, schedule)

        # A trial that has ended costs nothing more; under `vmap` it waits for the rest.
        return jax.lax.while_loop(going, step, state)

    def result(state: State) -> Result:
        return _result(state, candidate, steps, schedule.rank)

    return Attack(init, advance, result, steps)


def in_full_precision(attack: Attack) -> Attack:
    """Computes an attack's float32 products in full precision, as CPUs do anyway.

    What accelerators use by default (TF32, bfloat16) has 10 or 7 bits: enough to
    descend, but too few for least squares to converge.
    """

    def full(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with jax.default_matmul_precision("highest"):  # while it is traced
                return function(*args)

        return run

    init, advance, result = map(full, attack[:3])
    return Attack(init, advance, result, attack.steps)


def _step(
    state: State,
    objective: Objective,
    candidate: Candidate,
    optimizer: optax.GradientTransformationExtraArgs,
    steps: int,
    schedule: Schedule,
) -> State:
    """Takes one step of one trial."""
    t = jnp.asarray(state.step / steps)

    def value_fn(z: Point) -> jax.Array:
        return objective(z, t)

    # What a line search has stored is not used: a projection or the annealing has
    # changed it since, and under vmap it would save nothing.
    valued = _valued(objective, schedule, t)
    (loss, score), grad = jax.value_and_grad(valued, has_aux=True)(state.z)
    if schedule.rank is not None:
        score = schedule.rank(state.z)
    better = score < state.best_loss  # False for NaN: it can never win
    extra: dict[str, Any] = dict(value=loss, grad=grad, value_fn=value_fn)
    if schedule.residual is not None:
        residual = schedule.residual
        extra |= dict(residual_fn=lambda z: residual(z, t), project=candidate.project)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to a count
        delta, opt_state = optimizer.update(grad, state.opt_state, state.z, **extra)
        moved = optax.apply_updates(state.z, delta)
    z = candidate.project(moved)
    alive = _finite(loss) & _finite(grad) & _finite(z)
    best = optax.tree.where(better, state.z, state.best)
    # Without a first step there is only the start, which must not win over others.
    started = alive | (state.step > 0)
    return State(
        # A trial that ends stays at its best, since restarts may share their mean.
        z=optax.tree.where(alive, z, best),
        opt_state=opt_state,
        best=best,
        best_loss=jnp.where(
            started, jnp.where(better, score, state.best_loss), jnp.inf
        ),
        losses=state.losses.at[state.step].set(jnp.where(alive, loss, jnp.inf)),
        step=state.step + alive.astype(state.step.dtype),
        alive=alive,
        converged=_converged(schedule, opt_state, loss, t),
    )


def _valued(
    objective: Objective, schedule: Schedule, t: jax.Array
) -> Callable[[Point], tuple[jax.Array, jax.Array]]:
    """Returns `z -> (the objective at t, by what z is compared with others)`."""
    if schedule.both is not None:
        both = schedule.both
        return lambda z: both(z, t)

    def valued(z: Point) -> tuple[jax.Array, jax.Array]:
        loss = objective(z, t)
        if schedule.rank is None and _depends_on_time(objective, z, t):
            return loss, objective(z, jnp.ones_like(t))
        return loss, loss

    return valued


def _depends_on_time(objective: Objective, z: Point, t: jax.Array) -> bool:
    jaxpr = jax.make_jaxpr(lambda time: objective(z, time))(t).jaxpr
    (time,) = jaxpr.invars
    read = [atom for eqn in jaxpr.eqns for atom in eqn.invars] + jaxpr.outvars
    return any(atom is time for atom in read)


def _converged(
    schedule: Schedule, opt_state: Any, loss: jax.Array, t: jax.Array
) -> jax.Array:
    if schedule.converged is None:
        return jnp.array(False)
    return schedule.converged(opt_state, loss, t)


def _result(
    state: State,
    candidate: Candidate,
    steps: int,
    rank: Callable[[Point], jax.Array] | None,
) -> Result:
    nothing = ~state.alive & (state.step == 0)
    stopped = jnp.select(
        [nothing, ~state.alive, state.converged, state.step < steps],
        [Stop.NOTHING, Stop.NON_FINITE, Stop.CONVERGED, Stop.INTERRUPTED],
        Stop.BUDGET,
    )
    best, loss = state.best, state.best_loss
    if rank is not None:  # a single step may gain much, so the last one counts, too
        last = jnp.where(nothing, jnp.inf, rank(state.z))
        best = optax.tree.where(last < loss, state.z, best)
        loss = jnp.where(last < loss, last, loss)
    batch = candidate.decode(best)
    return Result(batch, loss, state.losses, state.step, stopped, uncertified(batch))


def _finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))
