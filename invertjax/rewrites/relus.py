"""Relus among the equations of a traced function."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from invertjax.rewrites import equations


def is_relu(eqn: core.JaxprEqn) -> bool:
    """Says whether an equation is `jax.nn.relu(x)` or `jnp.maximum(x, 0)`."""
    if eqn.primitive.name == "custom_jvp_call":  # as `jax.nn.relu` is
        inner: Any = eqn.params["call_jaxpr"]
        while len(inner.eqns) == 1 and equations.called(inner.eqns[0]) is not None:
            inner = equations.called(inner.eqns[0])
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
