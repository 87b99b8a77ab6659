"""Tables and pictures of a sweep's results.

    python -m experiments.show --workdir=runs/sweep
    python -m experiments.show --workdir=runs/sweep --rows=defense --columns=model
    python -m experiments.show --workdir=runs/sweep --metric=ssim --x=batch_size

Reads part-*.parquet of --workdir, a row a target, while a sweep still runs or after.
Prints mean, standard deviation and number of values over --rows and --columns, and
writes table.csv, curves.csv, curves.png, heatmap.png and contact.png into --out. Rows
that failed are counted, never averaged. Exit codes: 0 done, 1 nothing to show as all
rows failed, or no room to write, 2 bad input.
"""

from experiments import starting

if __name__ == "__main__":
    starting.end_at_signals()

import dataclasses
import pathlib
import sys

from absl import flags

from experiments.show import terminal
from experiments.show.summaries import Choice
from invertjax.cli import command, setting
from invertjax.cli.setting import setting as line


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is shown, and where it is written."""

    workdir: str | None = line("Folder of the sweep's results.")
    rows: str | None = line(
        "Setting down the table and the heat map. Default: of those that are not "
        "numbers the one with most values, such as defense_name."
    )
    columns: str | None = line("Setting across them. Default: the next, such as model.")
    metric: str = line(
        "What is shown: psnr, psnr_min, ssim, label_recall, loss, seconds or any other "
        "column of numbers.",
        default="psnr",
    )
    x: str | None = line(
        "Setting along the curves, a number. Default: strength if it varies, else the "
        "number with most values."
    )
    curves: str | None = line(
        "Setting with a curve a value. Default: defense_name if it varies, else the "
        "setting with most values."
    )
    out: str | None = line("Folder of what is written. Default: WORKDIR/_figures.")


def main(argv: list[str]) -> int:
    return command.run(argv, __doc__ or "", (Asked,), _run)


def _run(values: flags.FlagValues) -> int:
    asked = setting.from_flags(Asked, values)
    if asked.workdir is None:
        raise ValueError("--workdir is missing: the folder of a sweep's results.")
    workdir = pathlib.Path(asked.workdir)
    out = pathlib.Path(asked.out) if asked.out else workdir / "_figures"
    choice = Choice(asked.rows, asked.columns, asked.metric, asked.x, asked.curves)
    return terminal.show(workdir, out, choice)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
