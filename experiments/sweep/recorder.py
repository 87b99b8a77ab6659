"""Results of a sweep on their way to its table: scored, pictured, written in time."""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.audit import report
from experiments.audit import run as audit
from experiments.settings.config import Config
from experiments.sweep import table as table_
from experiments.sweep.pictures import save_pictures
from invertjax import driver
from invertjax.base import Stop

FLUSH_SECONDS = 10.0  # rows are on disk that soon


class Job(NamedTuple):
    """A target of a cell: its trial, and its keys `[R]`."""

    ready: audit.Prepared
    target: int
    trial: Any
    keys: jax.Array


class Rows:
    """The rows of a block on their way to the table.

    Args:
      folder: of the sweep.
      name: of the block.
      taken: rows of it that are in the table already.
      still: whether the block is still this process's, see `leases.held`.
      images: targets of a cell whose pictures are kept.
      progress: told `(1, PSNR or None)` for every row.

    Attributes:
      scored: targets added so far.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        taken: int,
        still: Callable[[], bool],
        images: int,
        progress: Callable[[int, float | None], None],
    ):
        self.folder, self.name, self.taken, self.still = folder, name, taken, still
        self.images, self.progress = images, progress
        self.rows: list[dict[str, Any]] = []
        self.scored = 0
        self.lap = self.written = time.monotonic()

    def __enter__(self):
        self.lap = time.monotonic()
        return self

    def __exit__(self, *exception):
        self._flush()

    def add(self, jobs: list[Job], numbers: range, results: Any) -> None:
        """Scores a finished group of targets; those of an interrupted one are lost."""
        stopped = np.asarray(results.stopped)
        if np.any(stopped == Stop.INTERRUPTED):
            return
        picked = jax.tree.map(np.asarray, driver.best(results))
        now = time.monotonic()
        seconds, self.lap = (now - self.lap) / len(numbers), now
        for place, number in enumerate(numbers):
            ready, target, *_ = jobs[number]
            result = jax.tree.map(lambda leaf, i=place: leaf[i], picked)
            row, batch = audit.scored(ready, target, result)
            kept = target < self.images
            images = save_pictures(self.folder, ready, target, batch, kept)
            self._put(_measured(ready, row, seconds) | images, ready.config)
            self.scored += 1
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self._flush()

    def fail(self, jobs: list[Job], reason: str) -> None:
        """Says of targets why they have no scores."""
        for job in jobs:
            self._fail(job.ready.config, job.target, reason)

    def fail_cell(self, config: Config, had: set[int], reason: str) -> None:
        """The same of all targets of a cell but those it had."""
        for target in set(range(config.targets)) - had:
            self._fail(config, target, reason)

    def _fail(self, config, target, reason):
        reason = " ".join(reason.split())
        self._put({"target": target, "status": "failed", "reason": reason}, config)

    def _put(self, row, config):
        self.rows.append({**table_.coordinates(config), **row, **_facts()})
        self.progress(1, row.get("psnr"))

    def _flush(self):
        if not self.rows:
            return
        if self.still():  # else another process has taken over, and has them too
            name = f"{self.name}-{self.taken:05d}"
            table_.write(self.folder, name, self.rows)
        self.taken, self.rows = self.taken + len(self.rows), []
        self.written = time.monotonic()


@functools.cache
def _facts():
    found = audit.versions()
    return {"versions": json.dumps(found["versions"]), "device": found["device"]}


def _measured(ready, row, seconds):
    """A row of `audit.scored` as columns."""
    failed = row["loss"] is None
    ssim = row["ssim"]
    return {
        "target": row["target"],
        "psnr": None if failed else float(np.mean(row["psnr"])),
        "psnr_min": None if failed else float(np.min(row["psnr"])),
        "ssim": float(np.mean(ssim)) if ssim and not failed else None,
        "label_recall": row["label_recall"],
        "loss": row["loss"],
        "steps_taken": row["steps"],
        "stopped": row["stopped"],
        "update_rms": row["update_rms"],
        "seconds": seconds,
        "status": "failed" if failed else "done",
        "reason": "no trial had a finite objective" if failed else None,
        "attack_run": ready.attack,
        "threat_model": json.dumps(report.threat_model(ready.config, ready.attack)),
    }
