"""Replacing single equations of whatever a function computes, before it is run."""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Primitives that only call the jaxprs in their parameters. Others may give theirs
# another meaning (a Pallas kernel, say), and are left alone.
_CALLS = frozenset({
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
    "scan", "while", "cond", "custom_jvp_call", "custom_vjp_call", "shard_map",
})  # fmt: skip

# Those that only call the one jaxpr in their parameters, and may be inlined.
_INLINED = frozenset({
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
})  # fmt: skip

Equations = Callable[[core.JaxprEqn], list[core.JaxprEqn]]
Step = Callable[[core.JaxprEqn, list[Any]], list[Any]]  # (equation, inputs) -> outputs


class Rewriting:
    """Puts other equations in the place of some, also in functions that are called.

    Args:
      matches: `equation -> bool`, which of them to replace.
      replaced: `equation -> equations` that read and write the same variables, e.g.
        from `of`, or the equation itself.
    """

    def __init__(
        self, matches: Callable[[core.JaxprEqn], bool], replaced: Equations
    ) -> None:
        self._matches = matches
        self._replaced = replaced
        # Rewritten bodies by original body: a jitted function inside the rewritten one
        # then keeps its compiled program from one eager call to the next.
        self._bodies: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def function(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function with the signature of `fun`, rewritten at every call."""

        @functools.wraps(fun)
        def rewritten(*args: Any, **kwargs: Any) -> Any:
            # Closing over the arguments leaves every argument that is no array alone.
            jaxpr, shapes = jax.make_jaxpr(
                lambda: fun(*args, **kwargs), return_shape=True
            )()
            leaves = core.jaxpr_as_fun(self._rewrite(jaxpr))()
            leaves = [jnp.asarray(leaf) for leaf in leaves]
            return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

        return rewritten

    def _rewrite(self, body: Any) -> Any:
        """Rewrites a jaxpr, open or closed; returns itself if nothing changes."""
        if not contains(body, self._matches):
            return body
        if body not in self._bodies:
            eqns = [new for eqn in body.eqns for new in self._rewrite_eqn(eqn)]
            if isinstance(body, core.Jaxpr):
                self._bodies[body] = body.replace(eqns=eqns)
            else:  # Before jax 0.11, a closed jaxpr wraps an open one.
                jaxpr = body.jaxpr.replace(eqns=eqns)
                self._bodies[body] = body.replace(jaxpr=jaxpr)
        return self._bodies[body]

    def _rewrite_eqn(self, eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
        if self._matches(eqn):
            return self._replaced(eqn)
        if eqn.primitive.name in _CALLS:
            params = {k: self._rewrite_param(v) for k, v in eqn.params.items()}
            return [eqn.replace(params=params)]
        return [eqn]

    def _rewrite_param(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(self._rewrite_param, value))
        return self._rewrite(value) if _is_jaxpr(value) else value


def contains(body: Any, matches: Callable[[core.JaxprEqn], bool]) -> bool:
    """Returns whether an equation matches, of a jaxpr or of one that it calls."""
    return any(holds(eqn, matches) for eqn in body.eqns)


def holds(eqn: core.JaxprEqn, matches: Callable[[core.JaxprEqn], bool]) -> bool:
    """Returns whether an equation matches, or one of a jaxpr that it calls."""
    bodies = filter(_is_jaxpr, _flat(eqn.params))
    return matches(eqn) or any(contains(body, matches) for body in bodies)


def count(body: Any) -> int:
    """Returns how many equations a jaxpr has, and those that it calls."""
    return sum(
        1 + sum(count(inner) for inner in _flat(eqn.params) if _is_jaxpr(inner))
        for eqn in body.eqns
    )


def of(fun: Callable[..., Any], eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
    """Returns the equations of `fun`, reading and writing an equation's variables.

    Where `fun` has results of another type, or constants, it is the equation itself.
    """
    # Tracing from the avals keeps weak types and varying mesh axes.
    traced = jax.make_jaxpr(fun)(*(var.aval for var in eqn.invars))
    if traced.out_avals != [var.aval for var in eqn.outvars] or traced.consts:
        return [eqn]  # Its consumers rely on the type: a scan on its carry's, say.
    inner = (*traced.jaxpr.invars, *traced.jaxpr.outvars)
    outer = dict(zip(inner, (*eqn.invars, *eqn.outvars), strict=True))

    def rename(atoms: Sequence[Any]) -> list[Any]:
        return [a if isinstance(a, core.Literal) else outer.get(a, a) for a in atoms]

    return [
        new.replace(
            invars=rename(new.invars),
            outvars=rename(new.outvars),
            source_info=eqn.source_info,
            ctx=eqn.ctx,
        )
        for new in traced.eqns
    ]


def evaluate(
    eqns: Sequence[core.JaxprEqn],
    outvars: Sequence[Any],
    values: dict[Any, Any],
    step: Step,
) -> list[Any]:
    """Returns the values of variables, by `step` at every equation.

    Args:
      eqns: in their order.
      outvars: whose values are returned; may be literals.
      values: of the variables that the equations do not compute.
      step: e.g. `bind`.
    """
    values = dict(values)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in eqns:
        found = step(eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in outvars]


def bind(eqn: core.JaxprEqn, given: list[Any]) -> list[Any]:
    """Returns the outputs of one equation as it is."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Before jax 0.8 the params came after the functions that are called.
    functions, params = params if isinstance(params, tuple) else ((), params)
    found = eqn.primitive.bind(*functions, *given, **params)
    return found if eqn.primitive.multiple_results else [found]


def called(eqn: core.JaxprEqn) -> Any:
    """Returns the jaxpr that an equation does nothing but call, None if it does more.

    It may be open or closed; loops, branches and functions with derivative rules of
    their own do more.
    """
    if eqn.primitive.name not in _INLINED:
        return None
    return eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]


def inlined(body: Any, given: Sequence[Any], step: Step) -> list[Any]:
    """Returns the outputs of a jaxpr, open or closed, by `step` at every equation."""
    closed = isinstance(body, core.ClosedJaxpr)
    jaxpr, consts = (body.jaxpr, body.consts) if closed else (body, ())
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, given, strict=True))
    return evaluate(jaxpr.eqns, jaxpr.outvars, values, step)


def depending(eqns: Sequence[core.JaxprEqn], roots: Iterable[Any]) -> set[Any]:
    """Returns the variables that depend on others, and these."""
    found = set(roots)
    for eqn in eqns:
        if not found.isdisjoint(read([eqn])):
            found |= set(eqn.outvars)
    return found


def needed(
    eqns: Sequence[core.JaxprEqn], wanted: Any, given: set[Any]
) -> list[core.JaxprEqn]:
    """Returns the equations that compute a variable from given ones, in their order."""
    wanted, kept = _variables([wanted]), []
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            kept.append(eqn)
            wanted |= read([eqn]) - given
    return kept[::-1]


def read(eqns: Iterable[core.JaxprEqn]) -> set[Any]:
    """Returns the variables that equations read."""
    return _variables(atom for eqn in eqns for atom in eqn.invars)


def _variables(atoms: Iterable[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}


def _flat(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        yield from value if type(value) is tuple else (value,)  # `cond`'s branches.


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
