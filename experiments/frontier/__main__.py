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
codes: 0 done, 1 targets failed, 2 bad input, 130 interrupted,
143 by SIGTERM.
"""

from experiments import starting

if __name__ == "__main__":
    starting.end_at_signals()

import sys

from absl import flags

from experiments.frontier import terminal
from experiments.frontier.terminal import Asked
from experiments.settings import settings
from experiments.settings.output import Output
from invertjax.cli import command, setting, startup

RECORDS = (*settings.RECORDS, Asked, Output)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    without = {**settings.FIXED, "defense_known": "attackers who know are added"}
    return command.run(argv, __doc__ or "", RECORDS, _run, without)


def _run(values: flags.FlagValues) -> int:
    asked = setting.from_flags(Asked, values)
    output = setting.from_flags(Output, values)
    return terminal.frontier(settings.given(values), asked, output)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
