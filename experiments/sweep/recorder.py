"""Results of a sweep on their way to its table: scored, pictured, written in time."""

import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.audit.prepare import Ready
from experiments.audit.versions import versions
from experiments.settings.settings import Settings
from experiments.sweep import pictures
from experiments.sweep import table as table_
from invertjax import driver
from invertjax.auditing import attackers, controls, run, scores
from invertjax.base import Stop
from invertjax.driver import Cache

FLUSH_SECONDS = 10.0  # rows are on disk that soon
LONGEST = 2000  # characters of a reason: compilers say a lot


class Job(NamedTuple):
    """A target of a cell."""

    cell: Settings
    ready: Ready
    target: int


class Output(NamedTuple):
    """Where the rows of a sweep go.

    folder: of the sweep.
    images: targets of a cell whose pictures are kept.
    cache: of compiled functions.
    progress: told `(1, PSNR or None)` for every row.
    """

    folder: pathlib.Path
    images: int
    cache: Cache
    progress: Callable[[int, float | None], None]


class Rows:
    """The rows of a block on their way to the table; a context manager.

    Args:
      output: of the sweep.
      name: of the block.
      taken: rows of it that are in the table already.
      still: whether the block is still this process's, see `leases.held`.

    Attributes:
      scored: targets added so far.
    """

    def __init__(
        self, output: Output, name: str, taken: int, still: Callable[[], bool]
    ):
        self.output, self.name, self.taken, self.still = output, name, taken, still
        self.rows: list[dict[str, Any]] = []
        self.scored = 0
        self.facts = _facts()
        self.lap = self.written = time.monotonic()

    def __enter__(self) -> "Rows":
        self.lap = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def add(self, jobs: Sequence[Job], numbers: range, results: Any) -> None:
        """Scores a finished group of targets; those of an interrupted one are lost."""
        if np.any(np.asarray(results.stopped) == Stop.INTERRUPTED):
            return
        picked = jax.tree.map(np.asarray, driver.best(results))
        now = time.monotonic()
        seconds, self.lap = (now - self.lap) / len(numbers), now
        for place, number in enumerate(numbers):
            result = jax.tree.map(lambda leaf, i=place: leaf[i], picked)
            self._add(jobs[number], result, seconds)
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self._flush()

    def fail(self, jobs: Iterable[Job], reason: Exception | str) -> None:
        """Says of targets why they have no scores."""
        for job in jobs:
            self._fail(job.cell, job.target, reason)

    def fail_cell(self, cell: Settings, had: set[int], reason: Exception | str) -> None:
        """Says the same of all targets of a cell but those it had."""
        for target in set(range(cell.data.targets)) - had:
            self._fail(cell, target, reason)

    def _add(self, job: Job, result: Any, seconds: float) -> None:
        try:
            row = self._scored(job, result, seconds)
        except OSError:  # no room for its pictures
            raise
        except Exception as error:
            self._fail(job.cell, job.target, error)
        else:
            self._put(row, job.cell)
        self.scored += 1

    def _scored(self, job: Job, result: Any, seconds: float) -> dict[str, Any]:
        cell, ready, target = job
        score = scores.scorer(self.output.cache)
        situation = ready.prepared.situation
        row, arrays = scores.scored(situation, target, result, score=score)
        kept: dict[str, str] = {}
        if target < self.output.images:
            kept = pictures.save(self.output.folder, cell, target, arrays)
        return _measured(ready, row, seconds) | kept

    def _fail(self, cell: Settings, target: int, reason: Exception | str) -> None:
        text = in_words(reason)
        self._put({"target": target, "status": "failed", "reason": text}, cell)

    def _put(self, row: dict[str, Any], cell: Settings) -> None:
        self.rows.append({**table_.coordinates(cell), **row, **self.facts})
        self.output.progress(1, row.get("psnr"))

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.still():  # else another process has taken over, and has them too
            name = f"{self.name}-{self.taken:05d}"
            table_.write(self.output.folder, name, self.rows)
        self.taken, self.rows = self.taken + len(self.rows), []
        self.written = time.monotonic()


def in_words(reason: Exception | str) -> str:
    """Returns a reason as one line; what is no ValueError is named, too."""
    named = "" if isinstance(reason, str | ValueError) else f"{type(reason).__name__}: "
    return " ".join(f"{named}{reason}".split())[:LONGEST]


def _facts() -> dict[str, str]:
    found = versions()
    return {"versions": json.dumps(found["versions"]), "device": found["device"]}


def _measured(ready: Ready, row: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Returns a row of `scores.scored` as columns, and what the attack was."""
    failed, ran = row["loss"] is None, ready.prepared.plan.row
    exact = attackers.closed_form(ready.prepared.situation, (row["target"],))
    return {
        **scores.columns(row),
        "guess": _guess(ready, row["target"]),
        "seconds": seconds,
        "status": "failed" if failed else "done",
        "reason": "no trial had a finite objective" if failed else None,
        "attack_run": ran.name,
        "closed_form": None if ran.closed_form else exact or None,
        "threat_model": json.dumps(run.threats(ready.prepared, ready.known)),
    }


def _guess(ready: Ready, target: int) -> float | None:
    """Returns what a guess without the update scores; None without the truth."""
    truth = ready.prepared.situation.truth
    if truth is None:
        return None
    return controls.blind_guess(truth["image"][target], ready.prepared.public)
