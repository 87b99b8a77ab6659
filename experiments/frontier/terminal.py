"""A frontier as a person runs it: progress bars, a table, the cheapest defense."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax

from experiments.audit import cost, digests
from experiments.frontier import accuracy, attackers, picture, run
from experiments.frontier import table as table_
from experiments.settings import federation
from experiments.settings.federation import Federation
from experiments.settings.output import Output
from experiments.settings.settings import Settings
from experiments.sweep import folder as sweeps
from experiments.sweep import grid, own_code, programs
from invertjax.cli import command, interrupts, run_folder
from invertjax.cli.cost import Estimate, speed
from invertjax.cli.progress import Bar
from invertjax.cli.setting import setting
from invertjax.reports import text

PLAN = pathlib.Path(__file__).parents[1] / "presets" / "frontier.toml"
MOST_DB = 160  # of a threshold; what float32 can tell apart is below


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which frontier, and what counts as protected."""

    plan: str | None = setting(
        "A TOML file: the defenses. Default: frontier.toml of experiments/presets."
    )
    threshold: float = setting("PSNR in dB that an attack must not reach.", default=20)


def frontier(given: Mapping[str, Any], asked: Asked, output: Output) -> int:
    """Runs a frontier, from a plan to its files; returns the exit code.

    Args:
      given: settings of the command line, which replace the file's.
      asked, output: of the command line.

    Raises:
      ValueError: on bad input, before anything is traced or written.
    """
    if not 0 < asked.threshold < MOST_DB:
        raise ValueError(
            f"--threshold={asked.threshold:g}: expected dB, 0 to {MOST_DB}."
        )
    file = asked.plan or str(PLAN)
    plan = federation.from_file(file)
    found = grid.read(file, given, apart=("federation",))
    cells = attackers.with_adaptive(file, found.cells)
    own_code.check(cells)
    jax.config.update("jax_enable_x64", cells[0].run.x64)
    own_code.check_models(cells)
    if output.dry_run:
        cost.say(_estimate(cells, plan))
        return 0
    workdir = output.workdir or f"runs/frontier-{pathlib.Path(file).stem}"
    every = found._replace(cells=cells)
    topics = ((cell.data, cell.clients, cell.victim) for cell in cells)
    read = digests.of_runs(topics, whole=True, check=interrupts.check)
    with run.open_(
        workdir, every, plan, inputs=read, overwrite=output.overwrite
    ) as folder:
        cost.say(_estimate(cells, plan))
        code = _run(folder, cells, plan)
        return _report(folder, cells, plan, asked.threshold) if code is None else code


def _run(folder: pathlib.Path, cells: list[Settings], plan: Federation) -> int | None:
    """Trains and attacks; returns the exit code if that was interrupted."""
    attacks, trainings = programs.group(cells), accuracy.plan(cells)
    print(
        f"{len(cells)} settings of attacks, {sum(g.rows for g in attacks)} targets, "
        f"{len(attacks)} programs; "
        f"{sum(map(len, trainings))} federations, {len(trainings)} programs"
    )
    with interrupts.deferred() as check:
        try:
            going = run.Run(folder, plan, check, Bar)
            going.train(trainings)
            going.read_labels(cells)
            going.attack(attacks)
        except KeyboardInterrupt:
            line = f"interrupted: the same command goes on; results are in {folder}."
            return command.said(line, command.INTERRUPTED)
    return None


def _estimate(cells: list[Settings], plan: Federation) -> Estimate:
    """Returns what a frontier will cost; a training for each kind of clients."""
    rate = speed()
    found = cost.of(group.cells for group in programs.group(cells))
    for kind in accuracy.plan(cells):
        data, victim, clients, _ = kind[0]
        each = cost.of_training(data, victim, clients, plan, rate)
        found = found.plus(each._replace(running=len(kind) * each.running))
    return found


def _report(
    folder: pathlib.Path, cells: list[Settings], plan: Federation, threshold: float
) -> int:
    """Writes and prints what was found; returns the exit code."""
    table = table_.read(folder, cells, plan)
    csv, png = (folder / name for name in run.RESULTS)
    run_folder.write(csv, table.to_csv(index=False).encode())
    picture.draw(table, threshold, png)
    print(table_.text(table))
    for line in table_.cheapest(table, threshold):
        print(line)
    print(f"Written: {csv}, {png}")
    failed = sweeps.failed(folder / run.ATTACKS)
    for reason, count in failed.items():
        line = f"failed, {count} targets: {text.printable(reason)}"
        print(line, file=sys.stderr)
    others = run.failures(folder)
    for reason, count in others.items():
        line = f"failed, {count} trainings or labels: {text.printable(reason)}"
        print(line, file=sys.stderr)
    return command.FAILED if failed or others else 0
