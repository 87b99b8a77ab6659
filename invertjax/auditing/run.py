"""One audit in three parts: the situation, the attack, the report.

`audit` is all of it as one call. Commands that run many settings in one program call
the parts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invertjax import driver
from invertjax.auditing import attackers, controls, observed, programs, report, scores
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.keys import Keys
from invertjax.auditing.situations import Situation, Target, Threat
from invertjax.auditing.threat_model import threat_model
from invertjax.base import Arrays, Batch, Result, Row, Stop
from invertjax.driver import stopping
from invertjax.driver.cache import Cache

SHOWN_PUBLIC = 256  # public images that guesses and priors are made of


class Prepared(NamedTuple):
    """All that an attack needs: read, observed, and checked.

    situation: with labels and numbers. plan: what the attacker does.
    target: as the client has it, with its numbers.
    public: `[P, H, W, C]` images for guesses; None where there are none.
    """

    situation: Situation
    plan: programs.Plan
    target: Target
    public: Any = None


class Watch(NamedTuple):
    """Who follows an audit.

    chunk: told a `driver.Progress` after every chunk of steps.
    check: called between chunks; it may raise a KeyboardInterrupt.
    update: told the row and the arrays of every update that is finished.
    """

    chunk: Callable[[driver.Progress], None] = lambda progress: None
    check: Callable[[], None] = lambda: None
    update: Callable[[Row, Arrays], None] = lambda row, arrays: None


SILENT = Watch()


def prepare(
    keys: Keys,
    row: Attacker,
    target: Target,
    situation: Situation,
    *,
    public: Batch | None = None,
    shown: int = SHOWN_PUBLIC,
    steps: int | None = None,
    warm_start: Attacker | None = None,
    numbers: Mapping[str, Any] | None = None,
    cache: Cache,
) -> Prepared:
    """Gathers the labels, chooses the attack, and puts its numbers into the trials.

    Args:
      keys: of the audit.
      row: of the attack that was asked for.
      target: as the client has it, with its numbers.
      situation: from `observed`.
      public: `{"image": [P, H, W, C], "label": [P]}` without the targets.
      shown: how many of them guesses and priors are made of.
      steps: the budget; None: the row's.
      warm_start: of the attack that it starts from.
      numbers: in the place of the row's.
      cache: of compiled functions.

    Raises:
      ValueError: where labels are to be read off an update that does not show them.
    """
    if "label" not in situation.trials:
        probes = _probes(keys, target, situation.threat, public)
        situation = observed.with_labels(
            keys.labels, row, target, situation, probes, cache=cache
        )
    images = None if public is None else public["image"][:shown]
    if row.public:
        situation = observed.with_smoothness(situation, images)
    chosen = attackers.named(row.choose(situation)) if row.choose else row
    given = {k: v for k, v in (numbers or {}).items() if k in chosen.numbers}
    fixed, arrays = chosen.split({**chosen.numbers, **given})
    situation = observed.with_numbers_of_attack(situation, arrays)
    budget = None if chosen.closed_form else steps or chosen.steps
    plan = programs.Plan(chosen, budget, tuple(sorted(fixed.items())), warm_start)
    return Prepared(situation, plan, target, images)


def attack(
    keys: Keys,
    prepared: Prepared,
    *,
    rule: stopping.Rule = stopping.NEVER,
    todo: Sequence[int] | None = None,
    watch: Watch = SILENT,
    memory_limit: float | None = None,
    cache: Cache,
) -> programs.Attacked:
    """Attacks the updates `todo`, by default all, and tells `watch.update` of each."""
    situation, plan = prepared.situation, prepared.plan
    score = scores.scorer(cache)

    def fit(index: int, batch: Batch) -> float:
        return programs.fit(situation, plan.row, index, batch)

    def on_update(index: int, result: Result) -> None:
        watch.update(*scores.scored(situation, index, result, score=score, fit=fit))

    return programs.attack(
        keys.attack,
        situation,
        plan,
        rule=rule,
        cache=cache,
        todo=todo,
        memory_limit=memory_limit,
        on_chunk=_watched(watch),
        on_update=on_update,
    )


def nulls(
    keys: Keys,
    prepared: Prepared,
    attacked: programs.Attacked,
    *,
    control: bool = True,
    watch: Watch = SILENT,
    cache: Cache,
) -> dict[str, dict[str, float]]:
    """Returns scores that need no knowledge of the update, by name.

    Without "shuffled_update" where that was not asked for, or was interrupted.
    """
    truth = prepared.situation.truth
    if truth is None:
        return {}
    score = scores.scorer(cache)
    found = controls.guesses(truth, prepared.public, keys.host, score=score)
    if not control or attacked.interrupted:
        return found
    results = driver.run(
        attacked.program,
        prepared.situation.shared,
        controls.shuffled(prepared.situation, keys.host),
        keys.control,
        on_chunk=lambda progress: watch.check(),
    ).results
    if not np.any(np.asarray(results.stopped) == Stop.INTERRUPTED):
        image = scores.finite(driver.best(results).batch["image"][0])
        reached = score({"image": image}, {"image": truth["image"][0]})
        found["shuffled_update"] = {"psnr_mean": float(np.mean(reached["psnr"]))}
    return found


def complete(
    keys: Keys,
    prepared: Prepared,
    *,
    rule: stopping.Rule = stopping.NEVER,
    control: bool = True,
    watch: Watch = SILENT,
    finished: tuple[Sequence[Row], Sequence[Arrays]] = ((), ()),
    todo: Sequence[int] | None = None,
    known: dict[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    earlier: Mapping[str, float] | None = None,
    memory_limit: float | None = None,
    cache: Cache,
) -> report.Report | None:
    """Attacks all updates, compares with nulls, and reports.

    Args:
      keys, prepared, rule, control, watch, memory_limit, cache: see `attack`, `nulls`.
      finished: rows and arrays of some updates, from a run that was interrupted.
      todo: the other updates, where another process has those rows.
      known, facts: see `reported`.
      earlier: seconds_compile and seconds_run of that run.

    Returns:
      The report; None where this process has no row to report.
    """
    rows, arrays = list(finished[0]), list(finished[1])

    def keep(row: Row, batch: Arrays) -> None:
        rows.append(row)
        arrays.append(batch)
        watch.update(row, batch)

    if todo is None:
        done = {row["target"] for row in rows}
        todo = [i for i in range(prepared.situation.updates) if i not in done]
    attacked = attack(
        keys,
        prepared,
        rule=rule,
        todo=todo,
        watch=watch._replace(update=keep),
        memory_limit=memory_limit,
        cache=cache,
    )
    null = nulls(keys, prepared, attacked, control=control, watch=watch, cache=cache)
    known_truth = prepared.situation.truth is not None
    missing = control and known_truth and "shuffled_update" not in null
    attacked = attacked._replace(interrupted=attacked.interrupted or missing)
    for name, seconds in (earlier or {}).items():
        attacked = attacked._replace(**{name: getattr(attacked, name) + seconds})
    if not rows:
        return None
    order = sorted(range(len(rows)), key=lambda i: rows[i]["target"])
    return reported(
        prepared,
        attacked,
        [rows[i] for i in order],
        [arrays[i] for i in order],
        null,
        known=known,
        facts=facts,
    )


def reported(
    prepared: Prepared,
    attacked: programs.Attacked,
    rows: Sequence[Row],
    arrays: Sequence[Arrays],
    null: Mapping[str, Mapping[str, float]],
    *,
    known: dict[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> report.Report:
    """Returns the report.

    Args:
      prepared, attacked: of the attack.
      rows, arrays: of all updates, those of earlier runs too.
      null: from `nulls`.
      known: lines of the threat model that the caller knows better.
      facts: what belongs beside the figures, such as the victim's training.
    """
    rms = float(np.mean([row["update_rms"] for row in rows]))
    return report.reconstruction(
        prepared.plan.row.name,
        rows,
        arrays,
        null,
        threats(prepared, known),
        {
            "layout": str(attacked.program.layout),
            "seconds_compile": attacked.seconds_compile,
            "seconds_run": attacked.seconds_run,
            "interrupted": attacked.interrupted,
            "defense_to_rms": scores.noise_to_rms(prepared.target, rms),
            **(facts or {}),
        },
    )


def threats(prepared: Prepared, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the threat model of an attack."""
    plan, threat = prepared.plan, prepared.situation.threat
    warm = plan.warm.name if plan.warm else None
    public = prepared.public is not None
    return threat_model(
        plan.row, prepared.target, threat, warm_start=warm, public=public, known=known
    )


def _probes(
    keys: Keys, target: Target, threat: Threat, public: Batch | None
) -> Batch | None:
    if threat.labels != "inferred" or target.shape[0] == 1:
        return None
    if public is None:
        return observed.noise_probes(keys.noise, target)
    return observed.probes_of(public, target.shape[0])


def _watched(watch: Watch) -> Callable[[driver.Progress], None]:
    def on_chunk(progress: driver.Progress) -> None:
        watch.chunk(progress)
        watch.check()

    return on_chunk
