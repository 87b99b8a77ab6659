"""Advances a group of trials in chunks of about equal time.

Between chunks, and only there, the host reports progress, notices a Ctrl-C, and decides
which trials go on.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from invertjax.base import Stop
from invertjax.driver import layout
from invertjax.driver.stopping import Rule


class Clock:
    """Adds up the wall time of its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self.start


def advance(
    step: Callable[[Any, np.ndarray], Any],
    state: Any,
    steps: int,
    going: np.ndarray,
    *,
    rule: Rule,
    seconds: float,
    clock: Clock,
    report: Callable[[int, np.ndarray], None],
) -> tuple[Any, np.ndarray, bool]:
    """Advances all trials to the end of their budget, or to an interruption.

    Args:
      step: `(state, n) -> state`, n `[T, R]` int32 further steps for each trial.
      state: with `best_loss` `[T, R]`, unless there are no steps to take.
      steps: the budget.
      going: `[T, R]` bool, the trials to advance.
      rule: which trials stop before.
      seconds: that a chunk should take.
      clock: runs while trials do.
      report: told the steps taken and the best objectives `[T, R]`.

    Returns:
      The state, the code of `Stop` for every trial that the rule stopped (else
      `Stop.BUDGET`) `[T, R]`, and whether it was interrupted.
    """
    reasons = np.full(going.shape, Stop.BUDGET)
    before = np.full(going.shape, np.inf)
    checks = [round(share * steps) for share in rule.shares]
    done, size = 0, 1
    while done < steps and going.any():
        until = next((check for check in checks if check > done), steps)
        size = min(size, until - done)
        lap = clock.seconds
        interrupted = False
        try:
            with clock:
                # Not donated, so that an interrupt leaves the last full chunk.
                n = np.where(going, size, 0).astype(np.int32)
                state = jax.block_until_ready(step(state, n))
            done += size
        except KeyboardInterrupt:
            interrupted = True
        if _any_process(interrupted):
            return state, reasons, True
        losses = np.asarray(layout.fetch(state.best_loss))
        try:
            report(done, losses)
        except KeyboardInterrupt:
            interrupted = True
        if _any_process(interrupted):
            return state, reasons, True
        if done in checks:
            kept = rule.keep(losses, before, going)
            reasons = np.where(going & ~kept, rule.reason, reasons)
            going, before = kept, losses
        pace = _slowest(max(clock.seconds - lap, 1e-6) / size)
        size = min(max(1, int(seconds / pace)), 2 * size + 8)
    return state, reasons, False


def _any_process(flag: bool) -> bool:
    return bool(_slowest(flag))


def _slowest(value: float) -> float:
    """Returns the largest value in any process: all must take the same decisions."""
    return float(layout.gather(float(value)).max())
