"""The price of protection: what leaks under a defense, against the accuracy it costs.

    python -m experiments.frontier
    python -m experiments.frontier --plan=my.toml --workdir=runs/my --threshold=18

The file is a grid of experiments.sweep, with a table [federation] of settings of
experiments.federate. Every defense and strength of the grid is attacked, by attackers
who know of it as well as by ones who do not, and a federation is trained with it.

Writes frontier.csv and frontier.png into --workdir: for every defense and strength the
PSNR of the strongest attack, the labels that updates give away, the accuracy on
held-out images, and epsilon where there is one. Prints the cheapest defense that keeps
the PSNR under --threshold. Given again, the command goes on where it was ended. Exit
codes: 0 done, 1 targets failed, 2 bad input, 130 interrupted.
"""

import pathlib
import sys

import jax
from absl import app, flags
from tqdm import tqdm

from experiments.frontier import accuracy
from experiments.frontier import picture as frontier_picture
from experiments.frontier import run as frontier_run
from experiments.frontier import table as frontier_table
from experiments.settings import federation
from experiments.settings import flags as settings
from experiments.sweep import folder as sweepdir
from experiments.sweep import grid, programs
from invertjax.cli import command, interrupts, startup

flags.adopt_module_key_flags(settings)
_PLAN = flags.DEFINE_string(
    "plan", "experiments/presets/frontier.toml", "A TOML file: the defenses."
)
_THRESHOLD = flags.DEFINE_float(
    "threshold", 20.0, "PSNR in dB that an attack must not reach."
)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.guarded(lambda: _main(argv))


def _main(argv):
    command.check_arguments(argv)
    if not 0 < _THRESHOLD.value < 160:
        raise ValueError(f"--threshold={_THRESHOLD.value}: expected dB, 0 to 160.")
    path = _PLAN.value
    plan = federation.from_file(path)
    given = grid.read(path, settings.given_flags(), apart=("federation",))
    cells = frontier_run.with_attackers(path, given.cells)
    jax.config.update("jax_enable_x64", cells[0].x64)
    workdir = settings.WORKDIR.value or f"runs/frontier-{pathlib.Path(path).stem}"
    overwrite = settings.OVERWRITE.value
    folder = frontier_run.open_(workdir, cells, given.axes, plan, overwrite=overwrite)
    return _run(folder, cells, plan)


def _run(folder, cells, plan):
    attacks, trainings = programs.group(cells), accuracy.plan(cells)
    print(
        f"{len(cells)} settings of attacks, {sum(g.rows for g in attacks)} targets, "
        f"{len(attacks)} programs; "
        f"{sum(map(len, trainings))} federations, {len(trainings)} programs"
    )
    with interrupts.deferred() as check:
        try:
            run = frontier_run.Run(folder, plan, check, _bar)
            run.train(trainings)
            run.read_labels(cells)
            run.attack(attacks)
        except KeyboardInterrupt:
            line = f"interrupted: the same command goes on; results are in {folder}."
            return command.said(line, command.INTERRUPTED)
    table = frontier_table.read(folder, cells)
    table.to_csv(folder / "frontier.csv", index=False)
    frontier_picture.draw(table, _THRESHOLD.value, folder / "frontier.png")
    print(frontier_table.text(table))
    for line in frontier_table.cheapest(table, _THRESHOLD.value):
        print(line)
    print(f"Written: {folder / 'frontier.csv'}, {folder / 'frontier.png'}")
    failed = sweepdir.failed(folder / frontier_run.ATTACKS)
    for reason, count in failed.items():
        print(f"failed, {count} targets: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _bar(items, words, total=None):
    return tqdm(items, desc=words, total=total, disable=None)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
