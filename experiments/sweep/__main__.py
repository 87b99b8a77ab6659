"""Runs a grid of reconstructions: a program for all cells that differ in numbers.

    python -m experiments.sweep --grid=experiments/presets/strengths.toml
    python -m experiments.sweep --grid=my.toml --workdir=runs/my --dry_run
    python -m experiments.sweep --grid=my.toml --workdir=runs/my --steps=100
    python -m experiments.show --workdir=runs/my

The file is TOML: settings of experiments.reconstruct, each a value or a list (see
experiments/sweep/grid.py). Flags of experiments.reconstruct replace the file's
settings.

Appends a row a target to part-*.parquet in --workdir, as they finish:
`pandas.read_parquet(workdir)`. Given again, a command goes on where it was ended, and
several processes, on one machine or many that share the folder, divide the cells among
them. Exit codes: 0 done, 1 cells failed, 2 bad input, 130 interrupted,
143 by SIGTERM.
"""

from experiments import starting

if __name__ == "__main__":
    starting.end_at_signals()

import sys

from absl import flags

from experiments.settings import settings
from experiments.settings.output import Output
from experiments.sweep import terminal
from experiments.sweep.terminal import Asked
from invertjax.cli import command, setting, startup

RECORDS = (*settings.RECORDS, Asked, Output)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.run(argv, __doc__ or "", RECORDS, _run, settings.FIXED)


def _run(values: flags.FlagValues) -> int:
    asked = setting.from_flags(Asked, values)
    output = setting.from_flags(Output, values)
    return terminal.sweep(settings.given(values), asked, output)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
