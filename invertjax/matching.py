"""The engine: find a batch from which the client would share what was observed.

Minimises `distance(client(decode(z)), observed) + prior(decode(z), t)` over z by any
optax optimiser. It knows no attack by name: an attack is a choice of its arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invertjax import distances, priors
from invertjax.base import (
    Attack,
    Candidate,
    Distance,
    Objective,
    Point,
    Prior,
    Residual,
    Result,
    Stop,
    Update,
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
    """

    residual: Residual | None = None
    rank: Callable[[Point], jax.Array] | None = None
    converged: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None


PLAIN = Schedule()


def objective(
    client, observed: Update, candidate: Candidate, distance: Distance, prior: Prior
) -> Objective:
    """The function to minimise: `(z, t) -> []`, t in [0, 1] the share of the run."""

    def value(z, t):
        batch = candidate.decode(z)
        return distance(client(batch), observed) + prior(batch, t)

    return value


def attack(
    client,
    observed: Update,
    candidate: Candidate,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    distance: Distance = distances.cosine,
    prior: Prior = priors.none,
) -> Attack:
    """Gradient matching as an attack.

    Args:
      client: `batch -> update`, e.g. `clients.at(client, params, key)`.
      observed: the update that was shared, pytree like the client's.
      candidate: what is optimised.
      optimizer: any optax optimiser; given `value`, `grad` and `value_fn`.
      steps: the budget.
      distance: between the guess's update and the observed one.
      prior: on the decoded batch.

    Raises:
      ValueError: if `observed` has not the tree and shapes that the client shares.
    """
    if steps < 1:
        raise ValueError(f"Expected steps={steps} >= 1.")
    check_structure(client, observed, candidate)
    value = objective(client, observed, candidate, distance, prior)
    return minimise(value, candidate, optimizer, steps=steps)


def minimise(
    objective: Objective,
    candidate: Candidate,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    schedule: Schedule = PLAIN,
) -> Attack:
    """Minimises any objective over a candidate, with one loop for every optimiser."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(key):
        z = candidate.project(candidate.init(key))
        dtype = jax.eval_shape(objective, z, jnp.zeros(())).dtype
        return State(
            z=z,
            opt_state=optimizer.init(z),
            best=z,
            best_loss=jnp.array(jnp.inf, dtype),
            losses=jnp.full(steps, jnp.nan, dtype),
            step=jnp.array(0, jnp.int32),
            alive=jnp.array(True),
            converged=jnp.array(False),
        )

    def advance(state, n):
        until = jnp.minimum(state.step + n, steps)

        def going(state):
            return state.alive & ~state.converged & (state.step < until)

        def step(state):
            return _step(state, objective, candidate, optimizer, steps, schedule)

        # A trial that has ended costs nothing more; under `vmap` it waits for the rest.
        return jax.lax.while_loop(going, step, state)

    def result(state):
        return _result(state, candidate, steps, schedule.rank)

    return Attack(init, advance, result, steps)


def in_full_precision(attack: Attack) -> Attack:
    """`attack` with products of float32 as they are on CPUs.

    What accelerators take by default (TF32, bfloat16) has 10 or 7 bits: enough to
    descend, too few for least squares to converge on.
    """

    def full(function):
        @functools.wraps(function)
        def run(*args):
            with jax.default_matmul_precision("highest"):  # as it is traced
                return function(*args)

        return run

    init, advance, result = map(full, attack[:3])
    return Attack(init, advance, result, attack.steps)


def _step(state, objective, candidate, optimizer, steps, schedule):
    """One step of one trial."""
    t = state.step / steps

    def value_fn(z):
        return objective(z, t)

    # Not what a line search has stored: a projection or the annealing has changed
    # it since, and under vmap taking it over saves nothing.
    loss, grad = jax.value_and_grad(value_fn)(state.z)
    score = loss if schedule.rank is None else schedule.rank(state.z)
    better = score < state.best_loss  # False for NaN: it can never win
    extra: dict[str, Any] = dict(value=loss, grad=grad, value_fn=value_fn)
    if schedule.residual is not None:
        residual = schedule.residual
        extra |= dict(residual_fn=lambda z: residual(z, t), project=candidate.project)
    delta, opt_state = optimizer.update(grad, state.opt_state, state.z, **extra)
    z = candidate.project(optax.apply_updates(state.z, delta))
    alive = _finite(loss) & _finite(grad) & _finite(z)
    best = optax.tree.where(better, state.z, state.best)
    return State(
        # A trial that ends rests at its best: restarts may share their mean.
        z=optax.tree.where(alive, z, best),
        opt_state=opt_state,
        best=best,
        best_loss=jnp.where(better, score, state.best_loss),
        losses=state.losses.at[state.step].set(jnp.where(alive, loss, jnp.nan)),
        step=state.step + alive,
        alive=alive,
        converged=_converged(schedule, opt_state, loss, t),
    )


def _converged(schedule, opt_state, loss, t):
    if schedule.converged is None:
        return jnp.array(False)
    return schedule.converged(opt_state, loss, t)


def _result(state, candidate, steps, rank):
    stopped = jnp.select(
        [~state.alive, state.converged, state.step < steps],
        [Stop.NON_FINITE, Stop.CONVERGED, Stop.INTERRUPTED],
        Stop.BUDGET,
    )
    best, loss = state.best, state.best_loss
    if rank is not None:  # a step may be worth much: the last one counts as well
        last = rank(state.z)
        best = optax.tree.where(last < loss, state.z, best)
        loss = jnp.where(last < loss, last, loss)
    return Result(candidate.decode(best), loss, state.losses, state.step, stopped)


def _finite(tree):
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def check_structure(client, observed, candidate):
    key = jax.eval_shape(lambda: jax.random.key(0))
    guess = jax.eval_shape(
        lambda key: client(candidate.decode(candidate.init(key))), key
    )
    wanted, given = _named(guess), _named(observed)
    if jax.tree.structure(guess) != jax.tree.structure(observed):
        missing, unknown = sorted({*wanted} - {*given}), sorted({*given} - {*wanted})
        raise ValueError(
            f"Expected an update with the tree {jax.tree.structure(guess)}, got "
            f"{jax.tree.structure(observed)}: missing {missing}, unknown {unknown}."
        )
    for name, want in wanted.items():
        if want.shape != jnp.shape(given[name]):
            raise ValueError(
                f"Expected update {name} to have shape {want.shape}, as the params "
                f"have; got {jnp.shape(given[name])}."
            )


def _named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
