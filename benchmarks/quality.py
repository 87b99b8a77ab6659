"""Time to quality: seconds until the mean PSNR of several targets reaches a level."""

import math
from typing import Any, NamedTuple

import numpy as np

from benchmarks import problem_file
from benchmarks.cells import Cell
from benchmarks.field import Field
from benchmarks.worker import Failed


class Contest(NamedTuple):
    """label: in the results; name: of the contestant; settings: fields of the problem
    that it changes; ladder: its own budgets, if not the plan's."""

    label: str
    name: str
    settings: dict[str, Any] = {}
    ladder: tuple[int, ...] = ()


# breaching's own 0.1 and 0.2, in normalised units of one quarter.
DEFAULTS = {"learning_rate": 0.025, "total_variation": 0.8}
ENGINE, TORCH, BREACHING, BREACHING_DEFAULTS = (
    Contest("engine", "engine"),
    Contest("torch", "torch"),
    Contest("breaching", "breaching"),
    Contest("breaching_defaults", "breaching", DEFAULTS),
)


class Plan(NamedTuple):
    """ladder: budgets of iterations, each a complete attack with its own schedule;
    targets: images; levels: dB; limit: seconds of a contestant, all budgets."""

    ladder: tuple[int, ...] = (50, 100, 200, 400, 800, 1600)
    targets: int = 4
    restarts: int = 8
    levels: tuple[int, ...] = (20, 25, 30)
    limit: float = 600
    contests: tuple[Contest, ...] = (ENGINE, TORCH, BREACHING, BREACHING_DEFAULTS)


QUICK = Plan((100, 200, 400), 2, 8, (20,), 40, (ENGINE, BREACHING, BREACHING_DEFAULTS))


class Rung(NamedTuple):
    """A complete attack on every target. seconds: a target's share of the run;
    compile: seconds of compiling, once; psnr: of every target, in dB."""

    steps: int
    seconds: float
    compile: float
    psnr: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.psnr))


def psnr(found: np.ndarray, images: np.ndarray) -> list[float]:
    """Every target's 10 log10(1 / MSE), in dB; `[N, B, H, W, C]` in [0, 1]."""
    squares = (np.clip(found, 0, 1) - images) ** 2
    errors = squares.mean(axis=(1, 2, 3, 4), dtype=np.float64)
    return (-10 * np.log10(np.maximum(errors, 1e-16))).tolist()


def seconds_to(level: float, rungs: list[Rung]) -> tuple[float, float] | None:
    """The least run time that reaches `level` dB, without and with compiling."""
    there = [rung for rung in rungs if rung.mean >= level]
    if not there:
        return None
    best = min(there, key=lambda rung: rung.seconds)
    return best.seconds, best.seconds + best.compile


def measure(model: str, field: Field, plan: Plan) -> dict[str, Any]:
    """Climbs the ladder with every contestant that is here.

    Returns:
      `{model}_{contestant}_seconds_to_{level}` (compiling excluded), the same with
      `_compile_included`, and every rung.
    """
    cell = Cell(model, restarts=plan.restarts, targets=plan.targets)
    problem = problem_file.load(field.build(cell))
    flat: dict[str, Any] = {}
    for contest in plan.contests:
        prefix = f"{model}_{contest.label}"
        if contest.name in field.missing:
            flat[f"{prefix}_quality_skipped"] = field.missing[contest.name]
            continue
        rungs = _climb(contest, problem, field, plan, flat, prefix)
        for level in plan.levels:
            _record(flat, prefix, level, rungs)
    return flat


def _climb(contest, problem, field, plan, flat, prefix):
    rungs: list[Rung] = []
    highest = max(plan.levels)
    for steps in contest.ladder or plan.ladder:
        expected = rungs[-1].seconds * plan.targets * 2 if rungs else 0
        spent = sum(rung.seconds for rung in rungs) * plan.targets
        if spent + expected > plan.limit:
            flat[f"{prefix}_quality_cut"] = f"{steps} steps: over {plan.limit:.0f} s"
            break
        usual = rungs[-1].seconds * steps / rungs[-1].steps if rungs else None
        try:
            rung = problem._replace(steps=steps, **contest.settings)
            problem_file.save(field.problem, rung)
            rungs.append(_attack(contest.name, field, steps, usual))
        except Failed as error:
            flat[f"{prefix}_quality_cut"] = f"{steps} steps: {error}"
            break
        flat[f"{prefix}_psnr_{steps}"] = rungs[-1].mean
        flat[f"{prefix}_psnr_of_targets_{steps}"] = rungs[-1].psnr
        flat[f"{prefix}_seconds_{steps}"] = rungs[-1].seconds
        flat[f"{prefix}_compile_{steps}"] = rungs[-1].compile
        if rungs[-1].mean >= highest:
            break
    return rungs


def _attack(name: str, field: Field, steps: int, usual: float | None) -> Rung:
    """Runs it; once more if the first took far longer than the `usual` seconds."""
    found = field.folder / "found.npy"
    problem = problem_file.load(field.problem)
    targets = len(problem.images)
    with field.worker(name) as worker:
        facts = worker.ask("load", path=field.problem)
        seconds = worker.ask("attack", path=found)["seconds"] / targets
        if usual is not None and seconds > 2 * usual:  # the machine stalled
            again = worker.ask("attack", path=found)["seconds"] / targets
            seconds = min(seconds, again)
    quality = psnr(np.load(found), problem.images)
    return Rung(steps, seconds, facts["seconds_compile"], quality)


def _record(flat, prefix, level, rungs):
    reached = seconds_to(level, rungs)
    if reached is None:
        best = max((rung.mean for rung in rungs), default=math.nan)
        flat[f"{prefix}_seconds_to_{level}_skipped"] = f"best mean {best:.1f} dB"
        return
    flat[f"{prefix}_seconds_to_{level}"] = reached[0]
    flat[f"{prefix}_seconds_to_{level}_compile_included"] = reached[1]
