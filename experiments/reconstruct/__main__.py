"""Reconstructs batches from shared updates, and reports what leaked.

    python -m experiments.reconstruct
    python -m experiments.reconstruct --dataset=cifar10 --attack=deep_leakage --x64
    python -m experiments.reconstruct --defense=clip:1 --defense=gaussian:0.01
    python -m experiments.reconstruct --local_steps=4 --batch_size=4 --local_batch=2
    python -m experiments.reconstruct --flagfile=experiments/presets/fedavg.flags
    python -m experiments.reconstruct --update=u.npz --params=p.npz --batch_size=1 \\
        --image_shape=32,32,3 --num_classes=10 --loss=my_module:loss_fn

A client computes an update on a batch of real images and shares it, plain or defended;
the attack reconstructs the batch from what was shared. Target i is images i*B to
(i+1)*B - 1 of --split, B being --batch_size.

Writes config.json, metrics.jsonl (a row a target), summary.json, reconstructions.npz
and grid.png into --workdir. Ctrl-C keeps the best so far, and --resume goes on from
there. Exit codes: 0 done, 1 no finite result, 2 bad input, 130 interrupted,
143 by SIGTERM.
"""

from experiments import starting

if __name__ == "__main__":
    starting.end_at_signals()

import dataclasses
import sys

from absl import flags

from experiments.reconstruct import terminal
from experiments.settings import settings
from experiments.settings.output import Resumable
from invertjax.cli import command, processes, setting, startup
from invertjax.cli.setting import setting as line


@dataclasses.dataclass(frozen=True)
class Several:
    """One run as several processes."""

    coordinator: str | None = line(
        "Run as one of several processes, on one machine or many, of the same flags: "
        "HOST:PORT of process 0, a free port that the others reach. Process 0 writes "
        "--workdir."
    )
    num_processes: int | None = line("With --coordinator: how many there are.")
    process_id: int | None = line("With --coordinator: which of them this is, from 0.")
    distributed: bool = line(
        "Run as one of several processes that JAX detects: Slurm, TPU pods, "
        "Kubernetes.",
        default=False,
    )


RECORDS = (*settings.RECORDS, Resumable, Several)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.run(argv, __doc__ or "", RECORDS, _run)


def _run(values: flags.FlagValues) -> int:
    several = setting.from_flags(Several, values)
    place = processes.Place(
        several.coordinator,
        several.num_processes,
        several.process_id,
        detect=several.distributed,
    )
    output = setting.from_flags(Resumable, values)
    return terminal.reconstruct(settings.given(values), output, place)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
