"""A traced function as one straight list of equations, to be cut anywhere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from invertjax.rewrites import equations


class Line(NamedTuple):
    """One equation; what it reads and writes are numbers of values."""

    eqn: core.JaxprEqn
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Straight(NamedTuple):
    """What a function computes, with the functions that it calls written out.

    lines: in the order of computation. inputs, outputs: numbers of values.
    constants: values by number. avals: shapes and types of all values by number.
    """

    lines: list[Line]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    avals: list[Any]

    def readers(self, value: int) -> list[Line]:
        """Returns the lines that read a value."""
        return [line for line in self.lines if value in line.reads]

    def needed(self, wanted: Iterable[int], known: Iterable[int] = ()) -> set[int]:
        """Returns the numbers of all values that some need, known ones followed no
        further."""
        known, found = set(known), set(wanted)
        for line in reversed(self.lines):
            if found.intersection(line.writes) - known:
                found.update(line.reads)
        return found

    def run(self, wanted: Sequence[int], known: Mapping[int, Any]) -> list[Any]:
        """Returns values, computed from others that are known."""
        needed = self.needed(wanted, known)
        values = {**self.constants, **known}
        for line in self.lines:
            if needed.intersection(line.writes) - set(known):
                found = equations.bind(line.eqn, [values[i] for i in line.reads])
                values |= dict(zip(line.writes, found, strict=True))
                values |= known
        return [values[i] for i in wanted]


def traced(fun: Callable[..., Any], *args: Any) -> Straight:
    """Traces a function; arguments may be `jax.ShapeDtypeStruct`s.

    The inputs and outputs are the leaves of its arguments and results, in order.
    Loops, branches and functions with derivative rules of their own, among them
    `jax.nn.relu`, stay one equation.
    """
    closed = jax.make_jaxpr(fun)(*args)
    program = Straight([], (), (), {}, [])

    def number(aval: Any) -> int:
        program.avals.append(aval)
        return len(program.avals) - 1

    def constant(value: Any, aval: Any) -> int:
        new = number(aval)
        program.constants[new] = value
        return new

    def write_out(body: Any, given: Sequence[int]) -> tuple[int, ...]:
        closed = isinstance(body, core.ClosedJaxpr)
        jaxpr, consts = (body.jaxpr, body.consts) if closed else (body, ())
        values = dict(zip(jaxpr.invars, given, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            values[var] = constant(value, var.aval)

        def read(atom: Any) -> int:
            literal = isinstance(atom, core.Literal)
            return constant(atom.val, atom.aval) if literal else values[atom]

        for eqn in jaxpr.eqns:
            reads = tuple(map(read, eqn.invars))
            inner = equations.called(eqn)
            if inner is not None:
                writes = write_out(inner, reads)
            else:
                writes = tuple(number(var.aval) for var in eqn.outvars)
                program.lines.append(Line(eqn, reads, writes))
            values |= dict(zip(eqn.outvars, writes, strict=True))
        return tuple(map(read, jaxpr.outvars))

    inputs = tuple(number(var.aval) for var in closed.jaxpr.invars)
    outputs = write_out(closed, inputs)
    return program._replace(inputs=inputs, outputs=outputs)
