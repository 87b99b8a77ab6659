"""Runs a grid of reconstructions: a program for all cells that differ in numbers.

    python -m experiments.sweep --grid=experiments/presets/strengths.toml
    python -m experiments.sweep --grid=my.toml --workdir=runs/my --dry_run
    python -m experiments.sweep --grid=my.toml --workdir=runs/my --steps=100
    python -m experiments.show --workdir=runs/my

The file is TOML: settings of experiments.reconstruct, each a value or a list (see
experiments/grid.py). Flags of experiments.reconstruct replace the file's settings.

Appends a row a target to part-*.parquet in --workdir, as they finish:
`pandas.read_parquet(workdir)`. Given again, a command goes on where it was ended, and
several processes, on one machine or many that share the folder, divide the cells among
them. Exit codes: 0 done, 1 cells failed, 2 bad input, 130 interrupted.
"""

import pathlib
import sys

import jax
from absl import app, flags
from tqdm import tqdm

from experiments.settings import flags as settings
from experiments.sweep import cost as estimate
from experiments.sweep import folder as sweepdir
from experiments.sweep import grid, programs
from experiments.sweep import run as sweeping
from experiments.victims import inputs
from invertjax.cli import command, interrupts, startup

flags.adopt_module_key_flags(settings)
_GRID = flags.DEFINE_string("grid", None, "A TOML file: the cells of the sweep.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Say what would run, and what it would cost; run nothing."
)
_YES = flags.DEFINE_bool("yes", False, "Run also what would take more than an hour.")
_IMAGES = flags.DEFINE_integer(
    "images", 1, "Keep the reconstructions of the first so many targets of each cell."
)
HOUR = 3600.0
SHOWN = 20  # groups in a dry run


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.guarded(lambda: _main(argv))


def _main(argv):
    path = _checked(argv)
    given = settings.given_flags()
    try:
        cells = grid.read(path, given)
    except grid.TooMany as error:
        return _too_many(error)
    _check_cells(cells.cells)
    jax.config.update("jax_enable_x64", cells.cells[0].x64)
    plan = programs.group(cells.cells)
    cost = estimate.of(plan)
    _describe(cells, plan, cost)
    if _DRY_RUN.value:
        return 0
    if cost.seconds > HOUR and not _YES.value:
        raise ValueError(f"That is {cost}: give --yes to run it all the same.")
    for cell in {inputs.key(cell): cell for cell in cells.cells}.values():
        inputs.check(cell)
    workdir = settings.WORKDIR.value
    workdir = workdir or f"runs/sweep-{pathlib.Path(path).stem}"
    folder = sweepdir.open_(workdir, cells, overwrite=settings.OVERWRITE.value)
    return _run(folder, plan)


def _run(folder, plan):
    rows = sum(group.rows for group in plan)
    best: list[float] = []
    with (
        interrupts.deferred() as check,
        tqdm(total=rows, desc="reading", unit="target", disable=None) as bar,
    ):

        def progress(count, psnr):
            if psnr is not None:
                best[:] = [max([*best, psnr])]
                bar.set_postfix_str(f"best {best[0]:.1f} dB", False)
            bar.update(count)

        def say(line):
            bar.write(line, file=sys.stderr)

        sweep = sweeping.Sweep(
            folder,
            plan,
            images=_IMAGES.value,
            say=say,
            stage=bar.set_description,
            progress=progress,
            check=check,
        )
        bar.update(rows - sweep.rows_left())
        try:
            sweep.run()
        except KeyboardInterrupt:
            line = f"interrupted: the same command goes on; the table is in {folder}."
            return command.said(line, command.INTERRUPTED)
    reasons = sweepdir.failed(folder)
    failed = sum(reasons.values())
    print(
        f"{rows} targets, {failed} of them failed; programs compiled: "
        f"{sweep.compiled}. Table: {folder}"
    )
    print(f"Look at it: python -m experiments.show --workdir={folder}")
    for reason, count in reasons.items():
        print(f"failed, {count} targets: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _checked(argv) -> str:
    """The grid file."""
    command.check_arguments(argv)
    if not _GRID.value:
        raise ValueError("--grid is missing: expected a TOML file.")
    if _IMAGES.value < 0:
        raise ValueError(f"--images={_IMAGES.value}: expected 0 or more.")
    return _GRID.value


def _check_cells(cells):
    if len({cell.x64 for cell in cells}) > 1:
        raise ValueError("x64 = [false, true]: expected one precision in a sweep.")
    if any(cell.attack == "auto" for cell in cells):
        raise ValueError(
            "attack = auto, or not given: expected a sweep to name its attack, e.g. "
            "inverting_gradients."
        )


def _too_many(error):
    cost = estimate.one(error.first, estimate.peak() * estimate.SHARE)
    whole = cost._replace(seconds=cost.seconds * error.cells)
    print(f"{error.cells} cells: {whole}")
    if _DRY_RUN.value:
        return 0
    raise ValueError(f"{error} Divide the grid, or leave values out.")


def _describe(cells, plan, cost):
    rows = sum(group.rows for group in plan)
    merged = f", {cells.merged} given twice and merged" if cells.merged else ""
    print(
        f"{len(cells.cells)} cells{merged}; {rows} targets; groups, each one "
        f"program: {len(plan)}; {cost}"
    )
    for name, values in cells.axes.items():
        print(f"  {name}: {_listed(values)}")
    for number, group in enumerate(plan[:SHOWN]):
        first = group.cells[0]
        print(
            f"  group {number}: {first.attack}, {first.model}, {first.dataset}, "
            f"batch {first.batch_size}: {len(group.cells)} cells, {group.rows} targets"
        )
    if len(plan) > SHOWN:
        print(f"  and {len(plan) - SHOWN} more")


def _listed(values):
    texts = ["+".join(v) or "none" if isinstance(v, tuple) else str(v) for v in values]
    return ", ".join(texts[:6]) + (f", ... ({len(texts)})" if len(texts) > 6 else "")


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
