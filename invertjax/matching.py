"""The engine: find a batch from which the client would share what was observed.

Minimises `distance(client(decode(z)), observed) + prior(decode(z), t)` over z by any
optax optimiser. It knows no attack by name: an attack is a choice of its arguments.
"""

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
    Result,
    Stop,
    Update,
)


class State(NamedTuple):
    """One trial between two steps.

    z: the iterate. opt_state: the optimiser's.
    best: the iterate with the lowest objective so far; best_loss: `[]`, its objective.
    losses: `[steps]`, the objective before each step. step: `[]` int32.
    alive: `[]` bool, False once loss or gradient were not finite.
    """

    z: Point
    opt_state: Any
    best: Point
    best_loss: jax.Array
    losses: jax.Array
    step: jax.Array
    alive: jax.Array


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
    _check_structure(client, observed, candidate)
    value = objective(client, observed, candidate, distance, prior)
    return minimise(value, candidate, optimizer, steps=steps)


def minimise(
    objective: Objective,
    candidate: Candidate,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
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
        )

    def step(state):
        def value_fn(z):
            return objective(z, state.step / steps)

        loss, grad = _value_and_grad(value_fn, state)
        better = loss < state.best_loss  # False for NaN: it can never win
        state = state._replace(
            best=optax.tree.where(better, state.z, state.best),
            best_loss=jnp.where(better, loss, state.best_loss),
            losses=state.losses.at[state.step].set(loss),
            alive=jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grad)),
        )
        delta, opt_state = optimizer.update(
            grad, state.opt_state, state.z, value=loss, grad=grad, value_fn=value_fn
        )
        raw = optax.apply_updates(state.z, delta)
        z = candidate.project(raw)
        opt_state = _forget_if_moved(opt_state, raw, z)
        return state._replace(z=z, opt_state=opt_state, step=state.step + 1)

    def advance(state, n):
        def body(_, state):
            # A trial that is done or not finite stays as it is; the others go on.
            going = state.alive & (state.step < steps)
            return optax.tree.where(going, step(state), state)

        return jax.lax.fori_loop(0, n, body, state)

    def result(state):
        stopped = jnp.where(
            state.alive,
            jnp.where(state.step < steps, Stop.INTERRUPTED, Stop.BUDGET),
            Stop.NON_FINITE,
        )
        batch = candidate.decode(state.best)
        return Result(batch, state.best_loss, state.losses, state.step, stopped)

    return Attack(init, advance, result, steps)


def _value_and_grad(value_fn, state):
    """Value and gradient at z, from the line search where the optimiser did one."""
    if not _searches(state.opt_state):
        return jax.value_and_grad(value_fn)(state.z)
    compute = optax.value_and_grad_from_state(value_fn)
    return compute(state.z, state=state.opt_state)


def _forget_if_moved(opt_state, raw, z):
    """Drops the line search's value where a projection moved the point it is of."""
    if not _searches(opt_state):
        return opt_state
    same = jax.tree.map(lambda a, b: jnp.array_equal(a, b), raw, z)
    moved = ~jnp.all(jnp.stack(jax.tree.leaves(same)))
    value = optax.tree.get(opt_state, "value")
    return optax.tree.set(opt_state, value=jnp.where(moved, jnp.inf, value))


def _searches(opt_state):
    return optax.tree.get(opt_state, "grad") is not None


def _check_structure(client, observed, candidate):
    key = jax.eval_shape(lambda: jax.random.key(0))
    guess = jax.eval_shape(
        lambda key: client(candidate.decode(candidate.init(key))), key
    )
    if jax.tree.structure(guess) != jax.tree.structure(observed):
        raise ValueError(
            f"Expected an update with the tree {jax.tree.structure(guess)}, got "
            f"{jax.tree.structure(observed)}."
        )
    wanted = jax.tree_util.tree_leaves_with_path(guess)
    for (path, want), leaf in zip(wanted, jax.tree.leaves(observed), strict=True):
        if want.shape != jnp.shape(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"Expected update {name} to have shape {want.shape}, as the params "
                f"have; got {jnp.shape(leaf)}."
            )
