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

import dataclasses
import sys
from typing import Any

from absl import app, flags

import models
from experiments import distributed, ending, startup, terminal
from experiments.checks import ATTACKS, LABELS, NETWORKS, NORM_MODES, STOPS
from experiments.config import Config
from invertjax import layout


def _one_of(names):
    return f"one of {', '.join(names)}"


flags.DEFINE_string(
    "dataset",
    None,
    "Where the images come from: photos and faces come with the installation, "
    "folder:PATH are your own (PATH/CLASS/IMAGE.png or .jpg), any other name is a TFDS "
    "data set prepared as array_record, such as cifar10. Default: photos.",
)
flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS data sets. Default: $TFDS_DATA_DIR."
)
flags.DEFINE_string(
    "split", None, "Split of the targets, e.g. train or test[100:]. Default: test."
)
flags.DEFINE_integer(
    "image_size", None, "Resize images to this side. Default: as they are; photos 32."
)
flags.DEFINE_string(
    "model", None, f"The victim, {_one_of(models.NAMES)}. Default: as --attack has it."
)
flags.DEFINE_string(
    "activation", None, f"Its activation, {_one_of(models.ACTIVATIONS)}."
)
flags.DEFINE_string("norm", None, f"Its normalisation, {_one_of(models.NORMS)}.")
flags.DEFINE_string(
    "norm_mode",
    None,
    f"Statistics of its batch norm, {_one_of(NORM_MODES)}. Default: train.",
)
flags.DEFINE_string(
    "init",
    None,
    f"Its initial weights, {_one_of(models.INITS)}: N(0, 1/fan_in), or U(-0.5, 0.5).",
)
flags.DEFINE_integer(
    "width", None, "Width of its first layer; the others are multiples of it."
)
flags.DEFINE_string(
    "networks",
    None,
    f"Untrained networks, {_one_of(NETWORKS)}: a new one for every target, or one for "
    "all. Default: per_target. A trained network serves all.",
)
flags.DEFINE_integer(
    "train_steps", None, "Train it first, with so many SGD steps of 64. Default: 0."
)
flags.DEFINE_string(
    "train_split",
    None,
    "Split for that, and of the attacker's public images. Targets in it are left out. "
    "Default: train.",
)
flags.DEFINE_float("train_lr", None, "Learning rate of that training. Default: 0.05.")
flags.DEFINE_string(
    "checkpoint",
    None,
    "A .safetensors file of the trained network: read if it exists, else written.",
)
flags.DEFINE_string(
    "attack",
    "auto",
    f"The attack, {_one_of(ATTACKS)}. auto: analytic where the update admits the "
    "closed form, else inverting_gradients.",
)
flags.DEFINE_integer("batch_size", None, "B, images behind one update. Default: 1.")
flags.DEFINE_integer("targets", None, "Number of updates to attack. Default: 4.")
flags.DEFINE_integer(
    "restarts",
    None,
    "Random starts, of which the attacker keeps the best fit. Default: 1.",
)
flags.DEFINE_integer(
    "steps",
    None,
    "Iterations of the attack. Default: 2000; deep_leakage and idlg 6000; gauss_newton "
    "40.",
)
flags.DEFINE_string(
    "stop",
    None,
    f"When a trial ends before that, {_one_of(STOPS)}: the worse half of the restarts "
    "at 1/8, 1/4 and 1/2 of the steps; or once its objective no longer falls. "
    "Default: never.",
)
flags.DEFINE_string(
    "labels",
    None,
    f"How the attacker comes by the labels, {_one_of(LABELS)}: told, read off the last "
    "layer, or optimised with the images. Default: known; idlg inferred, deep_leakage "
    "joint; with --update inferred.",
)
flags.DEFINE_float("attack_lr", None, "Learning rate of inverting_gradients.")
flags.DEFINE_float(
    "total_variation",
    None,
    "Weight of total variation in inverting_gradients and gauss_newton.",
)
flags.DEFINE_integer(
    "local_steps",
    None,
    "FedAvg: local SGD steps in all. Step i takes mini-batch i of the batch, in order "
    "and round again. Default: 0, the gradient itself (FedSGD).",
)
flags.DEFINE_integer("local_batch", None, "Images in a mini-batch. Default: B.")
flags.DEFINE_float("local_lr", None, "Learning rate of local steps. Default: 0.05.")
flags.DEFINE_bool(
    "local_shuffle", None, "Draw a new order every epoch, unknown to the attacker."
)
flags.DEFINE_bool(
    "local_known",
    None,
    "The attacker simulates the local steps; --nolocal_known: takes the update for one "
    "gradient. Default: true.",
)
flags.DEFINE_multi_string(
    "defense",
    [],
    "What the client does to its update before sharing, as NAME:VALUE: clip:NORM "
    "(global), gaussian:STD, laplace:SCALE, prune:SHARE_ZEROED (of each leaf), "
    "quantise:BITS, sign. Repeatable, applied in order.",
)
flags.DEFINE_bool(
    "defense_known", None, "The attacker knows the defense, and adapts where it can."
)
flags.DEFINE_string(
    "update",
    None,
    "Attack this update instead: .npz or .safetensors, keys are paths such as "
    "layers/0/kernel. A gradient, or params before minus after. Needs --params, "
    "--batch_size, --image_shape, and --model or --loss.",
)
flags.DEFINE_string(
    "params", None, "With --update: file of the params at which it was computed."
)
flags.DEFINE_string(
    "loss",
    None,
    "With --update: module:function of (params, batch) -> scalar, in JAX; batch has "
    '"image" [B, H, W, C] in [0, 1] and "label" [B] (with --labels=joint [B, K]).',
)
flags.DEFINE_list("image_shape", None, "With --update: H,W,C.")
flags.DEFINE_integer(
    "num_classes", None, "With --update: K. Default: 10; --loss needs it."
)
flags.DEFINE_bool("x64", False, "Compute in float64.")
flags.DEFINE_integer("seed", 0, "Of networks, clients and attacks.")
flags.DEFINE_bool(
    "null_control",
    None,
    "As a control, also attack the first target's update with its coordinates "
    "shuffled. Default: true.",
)
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
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the results. Default: runs/ATTACK-MODEL-DATASET-HASH.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the run in --workdir.")
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --workdir after its last finished target."
)


def config_from_flags() -> Config:
    """The flags as a config; not yet checked."""
    values: dict[str, Any] = {
        field.name: flags.FLAGS[field.name].value
        for field in dataclasses.fields(Config)
    }
    values["defense"] = tuple(values["defense"])
    if values["image_shape"] is not None:
        try:
            values["image_shape"] = tuple(int(side) for side in values["image_shape"])
        except ValueError:
            raise ValueError(
                f"--image_shape={','.join(values['image_shape'])}: expected H,W,C, "
                "e.g. 32,32,3."
            ) from None
    return Config(**values)


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return ending.of(lambda: _main(argv))


def _main(argv):
    """The exit code; what is wrong with the input is one line on stderr."""
    try:
        if len(argv) > 1:
            raise ValueError(f"Unexpected argument {argv[1]!r}: flags start with --.")
        return terminal.reconstruct(
            config_from_flags(),
            _WORKDIR.value,
            overwrite=_OVERWRITE.value,
            resume=_RESUME.value,
            place=distributed.Place(
                _COORDINATOR.value,
                _NUM_PROCESSES.value,
                _PROCESS_ID.value,
                detect=_DISTRIBUTED.value,
            ),
        )
    except ValueError as error:
        if not _is_ours(error):  # not bad input but a fault: show where
            raise
        return _said(error, 2)
    except layout.Lost:  # `ending` has the last word
        raise
    except (OSError, MemoryError) as error:  # a full disk; a trial that does not fit
        return _said(error, 1)
    except KeyboardInterrupt:
        return _said("interrupted.", terminal.INTERRUPTED)


def parse(argv: list[str]) -> list[str]:
    """Sets the flags; a wrong one is one line and exit code 2, as any bad input."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_said(error, 2))
    except SystemExit:  # absl has printed help, and calls that a failure
        sys.exit(0)


def _is_ours(error: Exception) -> bool:
    """Whether this project raised the error itself, about what it was given."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.partition(".")[0] in (
        "__main__",
        "experiments",
        "invertjax",
        "models",
    )


def _said(error, code):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
