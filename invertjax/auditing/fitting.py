"""Finds the form of a saved update that an attack explains best."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from invertjax.auditing import programs
from invertjax.auditing.preparing import Prepared
from invertjax.auditing.verdicts import CLOSELY, FITTED
from invertjax.auditing.watch import Watch
from invertjax.base import Arrays, Row, Stop
from invertjax.driver import layout


def unexplained(prepared: Prepared, rows: Sequence[Row]) -> bool:
    """Returns whether other forms should be tried; all processes answer alike.

    A closed form, which costs nothing, has to explain an update almost completely.
    """
    bar = CLOSELY if prepared.plan.row.closed_form else FITTED
    wanting = any(
        row["stopped"] != Stop.NAMES[Stop.INTERRUPTED] and _fit(row) >= bar
        for row in rows
    )
    return bool(layout.gather(wanting).any())


def _fit(row: Row) -> float:
    fit: float | None = row["fit"]
    if row["loss"] is None or fit is None:  # what was measured is only the start
        return np.inf
    return fit


def _best_fit(rows: Sequence[Row]) -> float:
    return min(map(_fit, rows), default=np.inf)  # another process may have the rows


def as_it_fits(
    prepared: Prepared,
    rows: list[Row],
    arrays: list[Arrays],
    watch: Watch,
    attack: Callable[..., programs.Attacked],
) -> tuple[list[Row], list[Arrays], dict[str, Any], bool]:
    """Returns rows, arrays and facts of the form of an update that is explained best,
    those of the update as it should be where none is explained at all; and whether
    that was interrupted before all were tried."""
    best, tried, facts = (rows, arrays), list[str](), dict[str, Any]()
    for form in prepared.forms:
        found: list[tuple[Row, Arrays]] = []
        other = watch.collecting(found)
        if attack(form.prepared(other), other).interrupted:
            return *best, {**facts, "update_forms_tried": tried}, True
        tried.append(form.words)
        now = [row for row, _ in found], [batch for _, batch in found]
        if _best_fit(now[0]) < min(FITTED, _best_fit(best[0])):
            best = now
            facts["update_form"] = form.words
        if not unexplained(prepared, best[0]):
            break
    return *best, {**facts, "update_forms_tried": tried}, False
