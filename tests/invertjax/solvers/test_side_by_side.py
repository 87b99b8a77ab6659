"""Branches that stay branches under `vmap`."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax.solvers import levenberg_marquardt, side_by_side


def test_any_trial_at_any_depth():
    alone = jax.jit(side_by_side.any_trial)
    assert bool(alone(jnp.array(True))) and not bool(alone(jnp.array(False)))
    every = jax.jit(jax.vmap(jax.vmap(side_by_side.any_trial)))
    rows = np.zeros((2, 3), bool)
    assert not np.any(every(rows))
    rows[1, 2] = True
    np.testing.assert_array_equal(every(rows), np.ones((2, 3), bool))


@pytest.mark.parametrize("wanted", ([], [1], [0, 1, 2]))
def test_where_computes_only_if_a_trial_wants_it(wanted):
    calls = []

    def compute(x):
        jax.debug.callback(lambda: calls.append(1))
        return 10 * x

    @jax.jit
    @jax.vmap
    def each(predicate, x):
        return side_by_side.where(predicate, lambda: compute(x), x)

    predicates = np.isin(np.arange(3), wanted)
    found = each(predicates, np.arange(1.0, 4.0, dtype=np.float32))
    jax.effects_barrier()
    np.testing.assert_array_equal(
        found, np.where(predicates, [10, 20, 30], [1, 2, 3]).astype(np.float32)
    )
    assert bool(calls) == bool(wanted)


def _outside_branches(jaxpr, name):
    """How often a primitive stands in a program, branches of `cond` not counted."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == name
        if equation.primitive.name != "cond":
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                count += _outside_branches(inner, name)
    return count


def test_trials_side_by_side_factor_nothing_before_they_need_it():
    # On accelerators, where trials run side by side, each step of each had computed
    # J^T J of all unknowns, and its factor for each damping.
    optimizer = levenberg_marquardt(cheap=4)
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)

    def step(z):
        given = dict(
            value=jnp.sum(z**2), value_fn=lambda z: jnp.sum(z**2),
            residual_fn=lambda z: matrix @ z, project=lambda z: z,
        )  # fmt: skip
        return optimizer.update(z, optimizer.init(z), z, **given)

    program = jax.make_jaxpr(jax.vmap(step))(jnp.ones((3, 5)))
    assert "cholesky" in str(program)
    assert _outside_branches(program.jaxpr, "cholesky") == 0
