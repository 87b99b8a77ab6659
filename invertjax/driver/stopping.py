"""Rules that stop trials before their budget, by their objectives so far.

A rule sees what an attacker sees, the objectives, and never the truth. A trial that
stops costs nothing more where trials run one after another (CPUs); where they run side
by side it costs nothing less.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from invertjax.base import Stop


class Rule(NamedTuple):
    """Judges the trials of a group at some shares of their budget.

    shares: in (0, 1), ascending: when to judge.
    keep: `(now, before, going) -> going`, `[T, R]` each: the best objectives now and at
      the share before (`inf` at first), and which trials go on.
    reason: the code of `Stop` for a trial that is stopped.
    """

    shares: tuple[float, ...]
    keep: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    reason: int


NEVER = Rule((), lambda now, before, going: going, Stop.BUDGET)


def halving(shares: tuple[float, ...] = (0.125, 0.25, 0.5)) -> Rule:
    """Lets the better half of each target's restarts go on (successive halving).

    Jamieson and Talwalkar (2016), "Non-stochastic Best Arm Identification", with the
    best objective so far as the score. Of an odd number the larger half goes on.
    """
    _check(shares)

    def keep(now: np.ndarray, before: np.ndarray, going: np.ndarray) -> np.ndarray:
        del before
        score = np.where(going & np.isfinite(now), now, np.inf)
        rank = np.argsort(np.argsort(score, axis=1, kind="stable"), axis=1)
        count = -(-going.sum(1, keepdims=True) // 2)
        return going & (rank < count)

    return Rule(tuple(shares), keep, Stop.DROPPED)


def plateau(tolerance: float = 1e-2, checks: int = 10) -> Rule:
    """Stops a trial whose best objective fell by at most `tolerance` of itself.

    Args:
      tolerance: relative, over one interval; an objective of exactly zero stops too.
      checks: intervals in the budget.

    Raises:
      ValueError: on a tolerance outside [0, 1) or fewer than two checks.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"Expected tolerance={tolerance} in [0, 1).")
    if checks < 2:
        raise ValueError(f"Expected checks={checks} >= 2.")

    def keep(now: np.ndarray, before: np.ndarray, going: np.ndarray) -> np.ndarray:
        finite = np.where(np.isfinite(before), before, 0.0)
        enough = np.where(
            np.isfinite(before), finite - tolerance * np.abs(finite), before
        )
        return going & ~(now >= enough)  # negated, since NaN is no plateau

    shares = tuple(i / checks for i in range(1, checks))
    return Rule(shares, keep, Stop.PLATEAU)


def _check(shares: tuple[float, ...]) -> None:
    ascending = all(a < b for a, b in zip(shares, shares[1:], strict=False))
    if not shares or not ascending or not 0 < shares[0] <= shares[-1] < 1:
        raise ValueError(f"Expected shares={shares} to ascend within (0, 1).")


# By the names that a user chooses from.
RULES = {"never": NEVER, "halving": halving(), "plateau": plateau()}
