"""One audit in three parts: the situation, the attack, the report.

`audit` is all of it as one call. Commands that run many settings in one program call
the parts.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invertjax.auditing import (
    attackers,
    certifying,
    clients,
    controls,
    fitting,
    programs,
    report,
    scores,
)
from invertjax.auditing.keys import Keys, again
from invertjax.auditing.observed import take
from invertjax.auditing.preparing import Prepared
from invertjax.auditing.situations import shapes_of_batch
from invertjax.auditing.threat_model import threat_model
from invertjax.auditing.watch import SILENT, Watch
from invertjax.base import Arrays, Result, Row
from invertjax.driver import stopping
from invertjax.driver.cache import Cache


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

    fit = programs.fitter(situation, plan.row, cache)

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
        watch=watch,
        on_update=on_update,
    )


def complete(
    keys: Keys,
    prepared: Prepared,
    *,
    rule: stopping.Rule = stopping.NEVER,
    control: bool = True,
    certify: bool = True,
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
      keys, prepared, rule, watch, memory_limit, cache: see `attack`.
      control: whether the attack is also run on a shuffled update, as a null.
      certify: whether what an attack finds to within rounding is certified, where the
        row says that it can be, at the price of a second attack (`certifying`).
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
    attack_ = functools.partial(
        attack, rule=rule, memory_limit=memory_limit, cache=cache
    )
    kept = watch._replace(update=keep)
    attacked = attack_(keys, prepared, todo=todo, watch=kept)
    if prepared.forms and fitting.unexplained(prepared, rows):

        def another(form: Prepared, watch: Watch) -> programs.Attacked:
            return attack_(again(keys), form, watch=watch)

        rows, arrays, told, stopped = fitting.as_it_fits(
            prepared, rows, arrays, watch, another
        )
        facts = {**(facts or {}), **told}
        attacked = attacked._replace(interrupted=attacked.interrupted or stopped)
    if certify and not attacked.interrupted and "update_form" not in (facts or {}):
        rows, told, stopped = certifying.certify(
            keys,
            prepared,
            attacked.program,
            rows,
            arrays,
            rule=rule,
            watch=watch,
            cache=cache,
        )
        facts = {**(facts or {}), **told}
        attacked = attacked._replace(interrupted=stopped)
    program = attacked.program if control and not attacked.interrupted else None
    null = controls.nulls(
        keys, prepared.situation, prepared.public, program, watch, cache
    )
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
    """Returns the report of an attack that was run.

    Args:
      prepared, attacked: of the attack.
      rows, arrays: of all updates, those of earlier runs too.
      null: from `nulls`.
      known: lines of the threat model that the caller knows better.
      facts: what belongs beside the figures, such as the victim's training.
    """
    row = prepared.plan.row
    exact = "" if row.closed_form else attackers.closed_form(prepared.situation)
    rms = float(np.mean([row["update_rms"] for row in rows]))
    return report.reconstruction(
        row.name,
        rows,
        arrays,
        null,
        threats(prepared, known),
        {
            "layout": str(attacked.program.layout),
            "seconds_compile": attacked.seconds_compile,
            "seconds_run": attacked.seconds_run,
            "interrupted": attacked.interrupted,
            "closed_form": exact,
            **_derivatives(prepared),
            "defense_to_rms": scores.noise_to_rms(prepared.target, rms),
            **(facts or {}),
        },
    )


def _derivatives(prepared: Prepared) -> dict[str, str]:
    """Returns what is said of derivatives, where it is something unusual."""
    situation, target = prepared.situation, prepared.target
    params = situation.shared.get("params")
    if params is None:  # each update has its own
        params = take(situation.trials["params"], 0)
    batch = shapes_of_batch(target, situation.threat)
    said = clients.said_of_derivatives(target, params, batch)
    return {"derivatives": said} if said else {}


def threats(prepared: Prepared, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the threat model of an attack."""
    plan, threat = prepared.plan, prepared.situation.threat
    warm = plan.warm.name if plan.warm else None
    public = prepared.public is not None
    return threat_model(
        plan.row, prepared.target, threat, warm_start=warm, public=public, known=known
    )
