"""A sweep as a person runs it: what it will cost, a progress bar, what failed."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.audit import cost, digests
from experiments.settings.output import Output
from experiments.settings.settings import Settings
from experiments.sweep import folder, grid, own_code, programs, run
from experiments.sweep.programs import Group
from experiments.victims import inputs
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import command, interrupts
from invertjax.cli.cost import Estimate, speed
from invertjax.cli.progress import Bar
from invertjax.cli.setting import setting
from invertjax.driver import Cache
from invertjax.reports import text

HOUR = 3600.0
SHOWN = 20  # groups in a dry run


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which sweep, and how much of it."""

    grid: str | None = setting("A TOML file: the cells of the sweep.")
    yes: bool = setting("Run also what would take more than an hour.", default=False)
    images: int = setting(
        "Keep the reconstructions of the first so many targets of each cell.",
        default=1,
        at_least=0,
    )


def sweep(given: Mapping[str, Any], asked: Asked, output: Output) -> int:
    """Runs a sweep, from a grid file to its table; returns the exit code.

    Args:
      given: settings of the command line, which replace the file's.
      asked, output: of the command line.

    Raises:
      ValueError: on bad input, before anything is traced or written.
    """
    if not asked.grid:
        raise ValueError("--grid is missing: expected a TOML file.")
    try:
        found = grid.read(asked.grid, given)
    except grid.TooMany as error:
        return _too_many(error, output)
    _check(found.cells)
    jax.config.update("jax_enable_x64", found.cells[0].run.x64)
    plan = programs.group(found.cells)
    estimate = cost.of(group.cells for group in plan)
    _describe(found, plan, estimate)
    if output.dry_run:
        return 0
    if estimate.seconds > HOUR and not asked.yes:
        raise ValueError(f"That is {estimate}: give --yes to run it all the same.")
    _check_data(found.cells)
    topics = ((cell.data, cell.clients, cell.victim) for cell in found.cells)
    read = digests.of_runs(topics, check=interrupts.check)
    workdir = output.workdir or f"runs/sweep-{pathlib.Path(asked.grid).stem}"
    into = folder.open_(workdir, found, inputs=read, overwrite=output.overwrite)
    return _run(into, plan, asked.images)


def _run(into: pathlib.Path, plan: list[Group], images: int) -> int:
    rows = sum(group.rows for group in plan)
    best: list[float] = []
    bar = Bar("reading", total=rows, unit="target")
    with interrupts.deferred() as check, bar:

        def progress(count: int, psnr: float | None) -> None:
            if psnr is not None:
                best[:] = [max([*best, psnr])]
            bar.add(count, note=f"best {best[0]:.1f} dB" if best else None)

        cache = Cache(most=run.KEPT)
        watch = run.Watch(bar.write, bar.say, progress, check)
        going = run.Sweep(into, plan, cache, images=images, watch=watch)
        bar.skip(rows - going.rows_left())
        try:
            going.run()
        except KeyboardInterrupt:
            line = f"interrupted: the same command goes on; the table is in {into}."
            return command.said(line, command.INTERRUPTED)
    return _say_done(into, rows, going.compiled)


def _say_done(into: pathlib.Path, rows: int, compiled: int) -> int:
    """Says what came of it, and returns the exit code."""
    reasons = folder.failed(into)
    failed = sum(reasons.values())
    print(
        f"{rows} targets, {failed} of them failed; programs compiled: {compiled}. "
        f"Table: {into}"
    )
    print(f"Look at it: python -m experiments.show --workdir={into}")
    for reason, count in reasons.items():
        line = f"failed, {count} targets: {text.printable(reason)}"
        print(line, file=sys.stderr)
    return command.FAILED if failed else 0


def _check(cells: Sequence[Settings]) -> None:
    own_code.check(cells)
    if len({cell.run.x64 for cell in cells}) > 1:
        raise ValueError("x64 = [false, true]: expected one precision in a sweep.")
    for cell in cells:
        row = ATTACKERS[cell.attack.attack]
        if row.choose is not None:  # cells with one program have one attack
            named = next(one.name for one in ATTACKERS.values() if one.choose is None)
            raise ValueError(
                f"attack = {row.name}, or not given: expected a sweep to name its "
                f"attack, e.g. {named}."
            )


def _check_data(cells: Sequence[Settings]) -> None:
    """Refuses cells whose images are not there; those of the same data are one."""
    by_data = {
        inputs.key(data, clients, victim): (data, clients, victim)
        for data, victim, _, clients, *_ in cells
    }
    for topics in by_data.values():
        inputs.check(*topics)
    own_code.check_models(cells)


def _too_many(error: grid.TooMany, output: Output) -> int:
    first = cost.one(error.first, speed())
    whole = first._replace(running=first.running * error.cells)
    print(f"{error.cells} cells: {whole}")
    if output.dry_run:
        return 0
    raise ValueError(f"{error} Divide the grid, or leave values out.")


def _describe(found: grid.Grid, plan: list[Group], estimate: Estimate) -> None:
    rows = sum(group.rows for group in plan)
    merged = f", {found.merged} given twice and merged" if found.merged else ""
    print(
        f"{len(found.cells)} cells{merged}; {rows} targets; groups, each one "
        f"program: {len(plan)}; {estimate}"
    )
    for name, values in found.axes.items():
        print(f"  {name}: {_listed(values)}")
    for number, group in enumerate(plan[:SHOWN]):
        data, victim, attack, clients, *_ = group.cells[0]
        print(
            f"  group {number}: {attack.attack}, {victim.model}, {data.dataset}, "
            f"batch {clients.batch_size}: {len(group.cells)} cells, {group.rows} "
            "targets"
        )
    if len(plan) > SHOWN:
        print(f"  and {len(plan) - SHOWN} more")


def _listed(values: list) -> str:
    texts = [
        "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
        for value in values
    ]
    return ", ".join(texts[:6]) + (f", ... ({len(texts)})" if len(texts) > 6 else "")
