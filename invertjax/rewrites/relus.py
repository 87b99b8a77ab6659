"""Relus among the equations of a traced function, and how equations are read."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Primitives that only call the one jaxpr in their parameters, and may be inlined.
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"})


def bind(eqn: core.JaxprEqn, given: Sequence[Any]) -> list[Any]:
    """Returns the outputs of an equation at given inputs."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Before jax 0.8 the params came after the functions that are called.
    functions, params = params if isinstance(params, tuple) else ((), params)
    found = eqn.primitive.bind(*functions, *given, **params)
    return found if eqn.primitive.multiple_results else [found]


def is_relu(eqn: core.JaxprEqn) -> bool:
    """Says whether an equation is `jax.nn.relu(x)` or `jnp.maximum(x, 0)`."""
    if eqn.primitive.name == "custom_jvp_call":  # as `jax.nn.relu` is
        inner = _open(eqn.params["call_jaxpr"])
        while len(inner.eqns) == 1 and inner.eqns[0].primitive.name in CALLS:
            inner = body(inner.eqns[0])
        return len(inner.eqns) == 1 and _is_maximum_with_zero(inner.eqns[0])
    return _is_maximum_with_zero(eqn)


def _is_maximum_with_zero(eqn: core.JaxprEqn) -> bool:
    aval: Any = eqn.outvars[0].aval
    floats = jnp.issubdtype(aval.dtype, jnp.floating)
    if eqn.primitive.name != "max" or not floats:
        return False
    literals = [atom.val for atom in eqn.invars if isinstance(atom, core.Literal)]
    return len(literals) == 1 and np.ndim(literals[0]) == 0 and literals[0] == 0


def operand(eqn: core.JaxprEqn) -> int:
    """Returns which input of a relu is not the zero."""
    return [isinstance(atom, core.Literal) for atom in eqn.invars].index(False)


def _open(jaxpr: Any) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def body(eqn: core.JaxprEqn) -> core.Jaxpr:
    """Returns the jaxpr that an equation calls."""
    return _open(eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"])


def consts(eqn: core.JaxprEqn) -> Sequence[Any]:
    """Returns the constants of the jaxpr that an equation calls."""
    jaxpr = eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]
    return jaxpr.consts if isinstance(jaxpr, core.ClosedJaxpr) else ()
