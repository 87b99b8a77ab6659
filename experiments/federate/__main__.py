"""Trains a federation, and audits it while it trains.

    python -m experiments.federate
    python -m experiments.federate --dataset=mnist --model=lenet --clients=100 \\
        --participants=10 --rounds=200 --local_steps=5 --local_batch=10 --targets=1
    python -m experiments.federate --sees=mean --audit_rounds=0,10,50
    python -m experiments.federate --partition=dirichlet:0.3 --server=fedadam
    python -m experiments.federate --defense=dp_sgd:1,0.5 --clients=5

Clients hold the examples of --train_split. In every round --participants of them, drawn
at random, share an update: a gradient, or with --local_steps what local training
changed. The server takes a step along the mean. At --audit_rounds the attack is run on
what the server sees of that very round, after --defense: on --targets of the updates,
or with --sees=mean on the mean of all, which is then made by secure aggregation.
Accuracy is measured on --split. The other flags are those of experiments.reconstruct.

Writes config.json, metrics.jsonl (a row for a round that was tested or attacked, or in
which clients were dropped), summary.json, state.npz, federation.png and a picture an
audit into --workdir. Ctrl-C keeps all rounds that are done; a kill loses those since
the last writing, a second's (ten times as long as writing takes, if that is longer),
and the one that runs. --resume goes on, with the same result as without a break. Exit
codes: 0 done, 1 updates not finite with --on_nan=stop, 2 bad input, 130 interrupted,
143 by SIGTERM.
"""

from experiments import starting

if __name__ == "__main__":
    starting.end_at_signals()

import sys

from absl import flags

from experiments.federate import terminal
from experiments.settings import federation, settings
from experiments.settings.federation import Federation
from experiments.settings.output import Resumable
from invertjax.cli import command, setting, startup

RECORDS = (*settings.RECORDS, Federation, Resumable)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.run(argv, __doc__ or "", RECORDS, _run, federation.WITHOUT)


def _run(values: flags.FlagValues) -> int:
    plan = federation.resolve(setting.given(Federation, values))
    output = setting.from_flags(Resumable, values)
    return terminal.federate(settings.given(values), plan, output)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
