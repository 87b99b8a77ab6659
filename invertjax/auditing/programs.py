"""From a situation to compiled attacks on all of its trials."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from invertjax import candidates, clients, distances, driver
from invertjax.auditing import clients as audited
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.observed import take
from invertjax.auditing.situations import (
    Situation,
    Target,
    Threat,
    Trial,
    adapted,
    shapes_of_batch,
    with_numbers,
)
from invertjax.auditing.watch import SILENT, Watch
from invertjax.base import (
    Attack,
    Batch,
    Candidate,
    Distance,
    Params,
    Result,
    Share,
    Softened,
    Stop,
    Update,
)
from invertjax.defenses.protection import Drawn
from invertjax.driver import stopping
from invertjax.driver.cache import Cache

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown


class Plan(NamedTuple):
    """What an attacker does; with a situation's target and threat it is a program.

    row: of the attack. steps: its budget; None for a closed form.
    fixed: its numbers that are no arrays, as sorted `(name, value)` pairs.
    warm: the row of the attack that it starts from, None if it starts by itself.
    """

    row: Attacker
    steps: int | None
    fixed: tuple[tuple[str, Any], ...] = ()
    warm: Attacker | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """Returns the facts by which two plans differ, an attacker by its name."""
        warm = self.warm.name if self.warm else None
        return self.row.name, self.steps, self.fixed, warm


class Attacked(NamedTuple):
    """The results of an attack on all updates of a situation.

    program: compiled. seconds_compile: 0 where it was there. seconds_run: without.
    interrupted: whether some updates were not finished.
    """

    program: driver.Program
    seconds_compile: float
    seconds_run: float
    interrupted: bool


def key_of(situation: Situation, plan: Plan) -> tuple[Hashable, ...]:
    """Returns what the functions of an attack depend on, but for their shapes."""
    threat = situation.threat
    joint = threat.labels == "joint"
    return situation.target, joint, threat.protection_known, plan.key


def maker(situation: Situation, plan: Plan) -> Callable[[Any, Any], Attack]:
    """Returns `(shared, trial) -> Attack` for the driver."""
    target, threat, row = situation.target, situation.threat, plan.row

    def make(shared: Any, trial: Any) -> Attack:
        found = trial["numbers"]
        now = with_numbers(target, found["target"])
        started = _trial(row, now, threat, shared, trial)
        if plan.warm is not None:
            first = _warm(plan.warm, started)
            warm = candidates.warm(started.candidate, first)
            started = started._replace(candidate=warm, near=plan.warm.exact)
        return _made(row, started, plan.steps, {**dict(plan.fixed), **found["attack"]})

    return make


def share_of(situation: Situation, row: Attacker, trial: Any) -> Share:
    """Returns the client as the attacker simulates it, at the params of a trial."""
    target = with_numbers(situation.target, trial["numbers"]["target"])
    return _trial(row, target, situation.threat, situation.shared, trial).share


def fitter(
    situation: Situation, row: Attacker, cache: Cache
) -> Callable[[int, Batch], float]:
    """Returns `(index, batch) -> the cosine distance of its update from that observed`.

    The batch may be the truth, but is NaN where it lacks what the attacker looks for
    besides images and labels.
    """

    def distance(now: Target) -> Distance:
        return adapted(now, situation.threat, distances.cosine)

    return measured(situation, row, distance, ("fit",), cache)


def measured(
    situation: Situation,
    row: Attacker,
    measure: Callable[[Target], Callable[[Update, Update], jax.Array]],
    name: tuple[str, ...],
    cache: Cache,
) -> Callable[[int, Batch], float]:
    """Returns `(index, batch) -> float`, a measure of its update and the one observed.

    Args:
      situation: whose updates are observed.
      row: of the attack.
      measure: of the target with its numbers, `(update of the batch, observed) -> []`.
      name: of the measure.
      cache: of compiled functions.
    """
    target, threat = situation.target, situation.threat
    joint, drawn = threat.labels == "joint", _looked_for(target, threat)

    def value(shared: Any, trial: Any, batch: Batch) -> jax.Array:
        now = with_numbers(target, trial["numbers"]["target"])
        share = _trial(row, now, threat, shared, trial).share
        return measure(now)(share(batch), trial["update"])

    key = (*name, target, joint, threat.protection_known, row.name)
    compiled = cache.jit(key, lambda: value)

    def at(index: int, batch: Batch) -> float:
        if drawn is not None and drawn.name not in batch:
            return float("nan")
        labels = np.asarray(batch["label"])
        if joint and labels.ndim == 1:
            labels = np.eye(target.parts.num_classes, dtype=np.float32)[labels]
        batch = {**batch, "label": labels}
        return float(compiled(situation.shared, take(situation.trials, index), batch))

    return at


def attack(
    keys: jax.Array,
    situation: Situation,
    plan: Plan,
    *,
    rule: stopping.Rule = stopping.NEVER,
    cache: Cache,
    todo: Sequence[int] | None = None,
    memory_limit: float | None = None,
    watch: Watch = SILENT,
    on_update: Callable[[int, Result], None] = lambda index, result: None,
) -> Attacked:
    """Attacks the updates of a situation.

    Args:
      keys: `[N, R]`, one a trial.
      situation: all that the attack starts from.
      plan: what the attacker does.
      rule: when a trial ends early.
      cache: of compiled functions.
      todo: the updates to attack; None: all.
      memory_limit: see `driver.build`.
      watch: who follows; its `update` is not told.
      on_update: told the index and the best restart's `Result` of a finished update.
    """
    built: list[driver.Program] = []
    arrays = situation.shared, situation.trials, keys

    def build() -> driver.Program:
        make = maker(situation, plan)
        with watch.doing("compiling the attack"):
            built.append(driver.build(make, *arrays, memory_limit=memory_limit))
        return built[0]

    leaves, structure = _jax.tree.flatten(arrays)
    key = ("attack", key_of(situation, plan), structure, tuple(map(_shape, leaves)))
    program = cache(key, build)
    seconds_compile = built[0].seconds_compile if built else 0.0
    rest = np.arange(situation.updates) if todo is None else np.asarray(todo, int)
    if not len(rest):
        return Attacked(program, seconds_compile, 0.0, False)

    def on_group(rows: range, results: Any) -> None:
        picked = jax.tree.map(np.asarray, driver.best(results))
        for i, row in enumerate(rows):
            on_update(int(rest[row]), take(picked, i))

    done = driver.run(
        program,
        situation.shared,
        take(situation.trials, rest),
        keys[rest],
        rule=rule,
        on_chunk=watch.on_chunk,
        on_group=on_group,
    )
    stopped = np.asarray(done.results.stopped)
    short = len(stopped) < len(rest)
    interrupted = short or bool(np.any(stopped == Stop.INTERRUPTED))
    return Attacked(program, seconds_compile, done.seconds, interrupted)


def _shape(leaf: Any) -> tuple[int | str, ...]:
    return (*np.shape(leaf), str(leaf.dtype))


def _made(
    row: Attacker, trial: Trial, steps: int | None, numbers: dict[str, Any]
) -> Attack:
    if row.closed_form:
        return row.make(trial, **numbers)
    return row.make(trial, steps=steps, **numbers)


def _warm(row: Attacker, trial: Trial) -> Attack:
    """Returns the attack that another one starts from, with its own defaults."""
    return _made(row, trial, row.steps, dict(row.numbers))


def _trial(
    row: Attacker, target: Target, threat: Threat, shared: Any, trial: Any
) -> Trial:
    """Returns what the attack starts from, with the candidate that its row asks for."""
    params = trial.get("params", shared.get("params"))
    knows = threat.protection_known
    simulate = audited.simulated(target, knows=knows, rule=row.rule)
    return Trial(
        target,
        threat,
        clients.at(simulate, params, _key(trial)),
        _softened(target, threat, params) if row.smooths else None,
        trial["update"],
        _candidate(row, target, threat, trial.get("label")),
        params,
        trial.get("smoothness"),
    )


def _softened(target: Target, threat: Threat, params: Params) -> Softened | None:
    """Returns `(batch, sharpness) -> update` with smooth relus, if there are relus."""
    batch, knows = shapes_of_batch(target, threat), threat.protection_known
    soften = audited.softened(target, knows=knows, params=params, batch=batch)
    if soften is None:
        return None

    def share(batch: Batch, sharpness: jax.Array) -> Update:
        client = soften(target, sharpness)
        return clients.at(client, params, jax.random.key(0))(batch)

    return share


def _looked_for(target: Target, threat: Threat) -> Drawn | None:
    """Returns what the network has drawn, where the attacker optimises it, too."""
    if not threat.protection_known or target.local is not None:
        return None
    return target.drawn


def _key(trial: Any) -> jax.Array:
    """Returns the client's key if the attacker was told of it, else one of his own."""
    if "key" in trial:
        return _jax.random.wrap_key_data(trial["key"])
    return jax.random.key(0)


def _candidate(
    row: Attacker, target: Target, threat: Threat, labels: jax.Array | None
) -> Candidate:
    """Returns pixels from the row's start, with the labels that the attacker has, or
    logits; and what the network has drawn, if the attacker looks for it."""
    known: dict[str, Any] = {"labels": labels}
    if labels is None:
        known = {"num_classes": target.parts.num_classes}
    found = candidates.pixels(target.shape, **known, init=row.start)
    drawn = _looked_for(target, threat)
    if drawn is None:
        return found
    size = (target.shape[0], drawn.size)
    return candidates.with_entry(
        found, drawn.name, lambda key: drawn.start(key, size), drawn.project
    )
