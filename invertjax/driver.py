"""Runs attacks: many targets and restarts, in compiled chunks, interruptible.

The only module of the library that compiles.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax.base import Attack, Key, Result

RESTARTS = "restarts"  # the name of the vmapped axis, for priors that need it


class Progress(NamedTuple):
    """What `on_chunk` is told.

    done, total: steps of a group of targets, over all groups.
    seconds: spent running, without compilation.
    losses: `[width, R]`, the best objectives so far of the group that is running.
    """

    done: int
    total: int
    seconds: float
    losses: jax.Array


class Run(NamedTuple):
    """What a program returns.

    results: a `Result` whose leaves have leading axes `[M, R]`; M < N if interrupted.
    seconds: wall time of running, without compilation.
    """

    results: Result
    seconds: float


class Program(NamedTuple):
    """One attack compiled for groups of `width` targets with R restarts each.

    init: `(shared, trials, keys) -> state`; advance: `(shared, trials, state, n) ->
    state`; finish: `(shared, trials, state) -> Result`. All leaves but those of
    `shared` have leading axes `[width]` (trials) or `[width, R]`.
    """

    init: Callable
    advance: Callable
    finish: Callable
    steps: int
    width: int
    seconds_compile: float


def build(
    make_attack: Callable[[Any, Any], Attack],
    shared: Any,
    trials: Any,
    keys: Key,
    *,
    width: int | None = None,
) -> Program:
    """Compiles an attack once, for any number of targets of these shapes.

    Everything numeric is an array: `trials` may hold updates, params, labels, prior
    weights, learning rates, noise scales. Targets and restarts run side by side under
    `vmap`; the axis of the restarts is named "restarts".

    Args:
      make_attack: `(shared, trial) -> Attack`.
      shared: pytree that all targets share, e.g. the params of one network.
      trials: pytree with leading axis `[N]`.
      keys: `[N, R]` PRNG keys, one a trial.
      width: targets advanced at once; default 1 on a CPU (where batching the weights
        of several networks gains nothing and costs cache), all of them elsewhere.

    Raises:
      ValueError: if the leading axes of trials and keys disagree, or on a width < 1.
    """
    count = _check(trials, keys)
    if width is not None and width < 1:
        raise ValueError(f"Expected width={width} >= 1.")
    if width is None:
        width = 1 if jax.default_backend() == "cpu" else count
    width = min(width, count)
    budget = []

    def over(method, shared, trials, *args):
        def one_target(trial, *args):
            attack = make_attack(shared, trial)
            budget.append(attack.steps)
            return jax.vmap(lambda *a: method(attack)(*a), axis_name=RESTARTS)(*args)

        return jax.vmap(one_target)(trials, *args)

    def init(shared, trials, keys):
        return over(lambda attack: attack.init, shared, trials, keys)

    def advance(shared, trials, state, n):
        step = lambda attack: lambda state: attack.advance(state, n)  # noqa: E731
        return over(step, shared, trials, state)

    def finish(shared, trials, state):
        return over(lambda attack: attack.result, shared, trials, state)

    start = time.perf_counter()
    group = (shared, *_rows((trials, keys), jnp.arange(width)))
    state = jax.eval_shape(init, *group)
    n = jax.ShapeDtypeStruct((), jnp.int32)
    return Program(
        init=jax.jit(init).lower(*group).compile(),
        advance=jax.jit(advance).lower(*group[:2], state, n).compile(),
        finish=jax.jit(finish).lower(*group[:2], state).compile(),
        steps=budget[0],
        width=width,
        seconds_compile=time.perf_counter() - start,
    )


def run(
    program: Program,
    shared: Any,
    trials: Any,
    keys: Key,
    *,
    chunk_seconds: float = 0.5,
    on_chunk: Callable[[Progress], None] = lambda progress: None,
    on_group: Callable[[range, Result], None] = lambda rows, results: None,
) -> Run:
    """Runs a program over N targets, group by group, in chunks of steps.

    KeyboardInterrupt ends the run after the chunk in flight; the group that was running
    then returns its best so far, and says `Stop.INTERRUPTED`. Before a group's first
    chunk, or in `on_group`, it ends the run with the groups that are complete, and is
    raised if there is none.

    Args:
      program: from `build`, with the shapes of these arguments.
      shared, trials, keys: see `build`. The keys are consumed.
      chunk_seconds: about how often to return from compiled code.
      on_chunk: told a `Progress` after every chunk.
      on_group: told the rows of a finished group and their results `[rows, R]`.
    """
    count = _check(trials, keys)
    total = program.steps * -(-count // program.width)
    finished, clock = [], _Clock()

    def report(steps, losses):
        done = program.steps * len(finished) + steps
        on_chunk(Progress(done, total, clock.seconds, losses))

    def run_group(rows):
        # The last group is filled up with repeats of its first target.
        filled = [*rows, *[rows[0]] * (program.width - len(rows))]
        trial, key = _rows((trials, keys), jnp.array(filled))
        with clock:
            state = jax.block_until_ready(program.init(shared, trial, key))
        advance = functools.partial(program.advance, shared, trial)
        state, interrupted = _chunks(
            advance, state, program.steps, chunk_seconds, report, clock
        )
        with clock:
            results = jax.block_until_ready(program.finish(shared, trial, state))
        finished.append(_rows(results, jnp.arange(len(rows))))
        on_group(rows, finished[-1])
        return interrupted

    try:
        for first in range(0, count, program.width):
            if run_group(range(first, min(first + program.width, count))):
                break
    except KeyboardInterrupt:
        if not finished:
            raise
    results = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *finished)
    return Run(results, clock.seconds)


def invert(
    attack: Attack,
    key: Key,
    *,
    restarts: int = 1,
    on_chunk: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Runs an attack on one update and returns the best of its restarts.

    Args:
      attack: e.g. `attacks.inverting_gradients(...)`.
      key: consumed.
      restarts: random starts, side by side; the lowest objective wins.
      on_chunk: see `run`.

    Returns:
      The best restart's `Result`. `result.batch` is the reconstruction.
    """
    if restarts < 1:
        raise ValueError(f"Expected restarts={restarts} >= 1.")
    keys = jax.random.split(key, (1, restarts))
    trials = jnp.zeros(1)  # the attack is closed over: nothing differs between targets
    program = build(lambda shared, trial: attack, None, trials, keys)
    done = run(program, None, trials, keys, on_chunk=on_chunk)
    return jax.tree.map(lambda leaf: leaf[0], best(done.results))


def best(results: Result) -> Result:
    """Of `[N, R]` results the best restart of every target, by the objective: `[N]`.

    The objective is all that an attacker sees: never the truth.
    """
    loss = jnp.where(jnp.isnan(results.loss), jnp.inf, results.loss)
    chosen = jnp.argmin(loss, axis=1)

    def pick(leaf):
        return jax.vmap(lambda row, index: row[index])(leaf, chosen)

    return jax.tree.map(pick, results)


def failed(results: Result) -> jax.Array:
    """`[N]` bool: no restart of the target ever had a finite objective."""
    return ~jnp.any(jnp.isfinite(results.loss), axis=1)


def _chunks(advance, state, steps, chunk_seconds, report, clock):
    """Advances in chunks of about `chunk_seconds` to the end, or to an interruption."""
    done, size = 0, 1
    try:
        while done < steps:
            size = min(size, steps - done)
            before = clock.seconds
            with clock:
                # Not donated: after an interruption the last full chunk is still there.
                n = jnp.array(size, jnp.int32)
                state = jax.block_until_ready(advance(state, n))
            done += size
            report(done, state.best_loss)
            pace = max(clock.seconds - before, 1e-6) / size
            size = min(max(1, int(chunk_seconds / pace)), 2 * size + 8)
    except KeyboardInterrupt:
        return state, True
    return state, False


class _Clock:
    """Adds up the wall time of its `with` blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *exception):
        self.seconds += time.perf_counter() - self.start


def _check(trials, keys):
    if keys.ndim != 2 or 0 in keys.shape:
        raise ValueError(f"Expected keys of shape [N, R], both >= 1; got {keys.shape}.")
    for leaf in jax.tree.leaves(trials):
        if jnp.shape(leaf)[:1] != keys.shape[:1]:
            raise ValueError(
                f"Expected every leaf of trials to have N={keys.shape[0]} rows, got "
                f"shape {jnp.shape(leaf)}."
            )
    return keys.shape[0]


@jax.jit
def _rows(tree, index):
    """The given rows of every leaf, in one compilation for the whole tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
