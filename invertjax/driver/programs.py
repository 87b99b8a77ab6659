"""Runs attacks: many targets and restarts, on all devices, in compiled chunks.

The only module of the library that compiles.
"""

import concurrent.futures
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invertjax.base import Attack, Key, Result, Stop
from invertjax.driver import chunks, layout, memory, stopping
from invertjax.driver.results import best, warn_if_failed
from invertjax.keys import typed


class Progress(NamedTuple):
    """What `on_chunk` is told.

    done, total: steps of a group of targets, over all groups.
    seconds: spent running, without compilation.
    losses: `[width, R]`, the best objectives so far of the group that is running.
    """

    done: int
    total: int
    seconds: float
    losses: np.ndarray


class Run(NamedTuple):
    """What a program returns.

    results: a `Result` of NumPy arrays `[M, R, ...]`; M < N if interrupted.
    seconds: wall time of running, without compilation.
    """

    results: Result
    seconds: float


class Program(NamedTuple):
    """One attack compiled for groups of targets with R restarts each.

    init: `(shared, trials, keys) -> state`; advance: `(shared, trials, state, n) ->
    state`, n further steps; finish: `(shared, trials, state) -> Result`; all of arrays
    that `layout.place` and `layout.group` have placed.

    steps: the budget of a trial. width, restarts: of a group. layout: where the trials
    run; as text, it says so. bytes: that a device needs.
    """

    init: jax.stages.Compiled
    advance: jax.stages.Compiled
    finish: jax.stages.Compiled
    steps: int
    width: int
    restarts: int
    layout: layout.Layout
    bytes: int
    seconds_compile: float


def build(
    make_attack: Callable[[Any, Any], Attack],
    shared: Any,
    trials: Any,
    keys: Key,
    *,
    width: int | None = None,
    at_once: int | None = None,
    devices: Sequence[Any] | None = None,
    memory_limit: float | None = None,
) -> Program:
    """Compiles an attack once, for any number of targets of these shapes.

    Everything numeric is an array: `trials` may hold updates, params, labels, prior
    weights, learning rates, noise scales. Trials are spread over all devices of all
    processes; on one they run side by side under `vmap`, or one after another. An
    attack whose restarts speak to each other, over the axis "restarts", has them side
    by side.

    Args:
      make_attack: `(shared, trial) -> Attack`.
      shared: pytree that all targets share, e.g. the params of one network.
      trials: pytree with leading axis `[N]`.
      keys: `[N, R]` PRNG keys, one a trial.
      width: targets in a group. Default: on CPUs as few as keep all devices busy, so
        that results come early; elsewhere all, if they fit.
      at_once: trials side by side on a device. Default: 1 on CPUs, whose matrix
        products and caches work best then; elsewhere as many as fit.
      devices: default: all of all processes, `jax.devices()`.
      memory_limit: bytes that a device may use, the same in all processes. Default:
        nine tenths of what it says that it has; CPUs say nothing.

    Raises:
      ValueError: if the leading axes of trials and keys disagree, or on numbers < 1.
      MemoryError: if not even one target fits.
    """
    keys = typed(keys, "keys")
    count, restarts = layout.sides(trials, keys)
    for name, value in (("width", width), ("at_once", at_once)):
        if value is not None and value < 1:
            raise ValueError(f"Expected {name}={value} >= 1.")
    devices = jax.devices() if devices is None else devices
    on_cpu = devices[0].platform == "cpu"
    if width is None:
        width = len(devices) // math.gcd(len(devices), restarts) if on_cpu else count
    width = min(width, count)
    at_once = 1 if at_once is None and on_cpu else at_once
    limit = memory.limit(devices) if memory_limit is None else memory_limit
    coupled = False
    start = time.perf_counter()
    while True:
        sides = layout.choose(devices, width, restarts, at_once, coupled)
        try:
            program = _compiled(make_attack, sides, width, shared, trials, keys)
        except NameError as error:  # restarts have an axis only if side by side
            if coupled or layout.RESTARTS not in str(error):
                raise
            coupled = True
            continue
        # Compilers of processes may disagree, but all must choose the same layout.
        needed = float(layout.gather(float(program.bytes)).max())
        smaller = memory.smaller(sides, width, needed, limit)
        if smaller is None:
            return program._replace(seconds_compile=time.perf_counter() - start)
        width, at_once = smaller


def run(
    program: Program,
    shared: Any,
    trials: Any,
    keys: Key,
    *,
    rule: stopping.Rule = stopping.NEVER,
    chunk_seconds: float = 0.5,
    on_chunk: Callable[[Progress], None] = lambda progress: None,
    on_group: Callable[[range, Result], None] = lambda rows, results: None,
) -> Run:
    """Runs a program over N targets, group by group, in chunks of steps.

    KeyboardInterrupt ends the run after the chunk in flight, in all processes; the
    group that was running returns its best so far and says `Stop.INTERRUPTED`. Between
    chunks it ends the run with the complete groups, and is raised if there is none.

    Args:
      program: from `build`, with the shapes of these arguments.
      shared, trials, keys: see `build`; every process has them all.
      rule: when to stop a trial early, e.g. `stopping.halving()`.
      chunk_seconds: about how often to return from compiled code.
      on_chunk: told a `Progress` after every chunk.
      on_group: told the rows of a finished group and their results `[rows, R]`.
    """
    keys = typed(keys, "keys")
    count, restarts = layout.sides(trials, keys)
    if restarts != program.restarts:
        raise ValueError(f"Expected R={program.restarts} keys, got R={restarts}.")
    total = program.steps * -(-count // program.width)
    sides, clock, finished = program.layout, chunks.Clock(), []
    shared = layout.place(shared, sides.mesh)

    def run_group(rows: range) -> bool:
        def report(steps: int, losses: np.ndarray) -> None:
            done = program.steps * len(finished) + steps
            shown = losses[: len(rows), :restarts]
            on_chunk(Progress(done, total, clock.seconds, shown))

        group = shared, *layout.group(sides, trials, keys, rows)
        options = dict(rule=rule, seconds=chunk_seconds, clock=clock, report=report)
        found, interrupted = _run_group(program, group, len(rows), options)
        finished.append(jax.tree.map(lambda leaf: leaf[: len(rows), :restarts], found))
        on_group(rows, finished[-1])
        return interrupted

    try:
        for first in range(0, count, program.width):
            if run_group(range(first, min(first + program.width, count))):
                break
    except KeyboardInterrupt:
        if not finished:
            raise
    results = jax.tree.map(lambda *leaves: np.concatenate(leaves), *finished)
    return Run(results, clock.seconds)


def _run_group(
    program: Program, group: tuple, targets: int, options: dict[str, Any]
) -> tuple[Result, bool]:
    """Returns a group's results, filled up like its layout, and if it was cut off."""
    (shared, trial, key), clock = group, options["clock"]
    going = np.zeros(key.shape, bool)
    going[:targets, : program.restarts] = True  # repeats stay idle
    with clock:
        state = jax.block_until_ready(program.init(shared, trial, key))
    step = functools.partial(program.advance, shared, trial)
    state, reasons, interrupted = chunks.advance(
        step, state, program.steps, going, **options
    )
    with clock:
        found = layout.fetch(program.finish(shared, trial, state))
    # A trial that a rule stopped reports INTERRUPTED itself: put the reason there.
    ruled = (reasons != Stop.BUDGET) & (found.stopped == Stop.INTERRUPTED)
    stopped = np.where(ruled, reasons, found.stopped)
    return found._replace(stopped=stopped), interrupted


def invert(
    key: Key,
    attack: Attack,
    *,
    restarts: int = 1,
    on_chunk: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Runs an attack on one update and returns the best of its restarts.

    Args:
      key: consumed.
      attack: e.g. `attacks.inverting_gradients(...)`.
      restarts: random starts, side by side; the lowest objective wins.
      on_chunk: see `run`.

    Returns:
      The best restart's `Result`. `result.batch` is the reconstruction; where there is
      none, a warning says so, and `result.loss` is infinite.
    """
    if restarts < 1:
        raise ValueError(f"Expected restarts={restarts} >= 1.")
    keys = jax.random.split(typed(key), (1, restarts))
    trials = jnp.zeros(1)  # unused, as the attack is closed over
    program = build(lambda shared, trial: attack, None, trials, keys)
    done = run(program, None, trials, keys, on_chunk=on_chunk)
    warn_if_failed(done.results)
    return jax.tree.map(lambda leaf: leaf[0], best(done.results))


def _compiled(
    make_attack: Callable,
    sides: layout.Layout,
    width: int,
    shared: Any,
    trials: Any,
    keys: Key,
) -> Program:
    """Compiles the three functions of a program side by side."""
    budget = []

    def over(method: Callable, shared: Any, trials: Any, *args: Any) -> Any:
        def one_trial(trial: Any, *args: Any) -> Any:
            attack = make_attack(shared, trial)
            budget.append(attack.steps)
            return method(attack)(*args)

        return layout.over_trials(sides, one_trial, trials, args)

    def init(shared: Any, trials: Any, keys: Key) -> Any:
        return over(lambda attack: attack.init, shared, trials, keys)

    def advance(shared: Any, trials: Any, state: Any, n: jax.Array) -> Any:
        return over(lambda attack: attack.advance, shared, trials, state, n)

    def finish(shared: Any, trials: Any, state: Any) -> Any:
        return over(lambda attack: attack.result, shared, trials, state)

    trial, key = layout.group(sides, trials, keys, range(width))
    group = layout.place(shared, sides.mesh), trial
    init = layout.spread(init, sides)

    def like(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=key.sharding)

    state = jax.tree.map(like, jax.eval_shape(init, *group, key))
    n = like(jnp.zeros(key.shape, jnp.int32))
    lowered = [
        jax.jit(init).lower(*group, key),
        jax.jit(layout.spread(advance, sides)).lower(*group, state, n),
        jax.jit(layout.spread(finish, sides)).lower(*group, state),
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda program: program.compile(), lowered))
    return Program(
        *compiled,
        steps=budget[0],
        width=width,
        restarts=keys.shape[1],
        layout=sides,
        bytes=max(map(memory.used, compiled)),
        seconds_compile=0.0,
    )
