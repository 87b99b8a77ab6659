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
there. Exit codes: 0 done, 1 no finite result, 2 bad input, 130 interrupted.
"""

from absl import app, flags

from experiments.reconstruct import terminal
from experiments.settings import flags as settings
from invertjax.cli import command, processes, startup

flags.adopt_module_key_flags(settings)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Run as one of several processes, on one machine or many, of the same flags: "
    "HOST:PORT of process 0, a free port that the others reach. Process 0 writes "
    "--workdir.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "With --coordinator: how many there are."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "With --coordinator: which of them this is, from 0."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Run as one of several processes that JAX detects: Slurm, TPU pods, Kubernetes.",
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --workdir after its last finished target."
)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.guarded(lambda: _main(argv))


def _main(argv):
    command.check_arguments(argv)
    return terminal.reconstruct(
        settings.config_from_flags(),
        settings.WORKDIR.value,
        overwrite=settings.OVERWRITE.value,
        resume=_RESUME.value,
        place=processes.Place(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_ID.value,
            detect=_DISTRIBUTED.value,
        ),
    )


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
