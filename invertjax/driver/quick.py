"""Less time to compile: for functions that run once, or that many places call."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax import core

F = TypeVar("F", bound=Callable[..., Any])

# XLA's for CPUs: less than half the time to compile, 2 to 4 times the time to run.
OPTIONS = {"xla_backend_optimization_level": 0}


def jit(function: F) -> F:
    """Returns a function compiled as `jax.jit` does, on CPUs with little optimisation.

    It is meant for what runs once or a few times in less time than it takes to compile,
    such as the initial weights of a network. Results may differ from those of `jax.jit`
    in their last bits. Under a transformation it is the function itself.

    Args:
      function: of positional arguments, pytrees of arrays.
    """

    @functools.cache
    def compiled(platform: str) -> Callable[..., Any]:
        return jax.jit(function, compiler_options=_options(platform))

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        # JAX takes options of the outermost function only.
        if any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(args)):
            return function(*args)
        return compiled(jax.default_backend())(*args)

    return cast(F, call)


def traced_once(function: F) -> F:
    """Returns a function that JAX traces once for arguments of the same shapes.

    Compiled functions that call it many times are then traced in less time; XLA
    compiles what they compute as before.
    """
    return cast(F, jax.jit(function))


@functools.cache
def _options(platform: str) -> dict[str, Any] | None:
    """Returns the options, or None where they are for others, or XLA has none such."""
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return OPTIONS
