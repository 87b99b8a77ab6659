"""Reconstructs batches from shared updates, and reports what leaked.

    python -m experiments.reconstruct --dataset=photos --workdir=runs/first

Writes config.json, metrics.jsonl (a row a target), summary.json, reconstructions.npz
and grid.png into --workdir. Every flag has a default; those without a value below take
the default of --attack and --model.
"""

import dataclasses
import sys

from absl import app, flags

import models
from experiments import startup, terminal
from experiments.config import ATTACKS, LABELS, NETWORKS, Config

flags.DEFINE_string(
    "dataset", "photos", "photos, faces, folder:PATH, or a TFDS name such as cifar10."
)
flags.DEFINE_string("data_dir", None, "TFDS folder (default: TFDS_DATA_DIR).")
flags.DEFINE_string(
    "split", "test", "Split of the targets: target i is its i-th batch."
)
flags.DEFINE_integer("image_size", None, "Side to which images are resized.")
flags.DEFINE_string("model", None, f"The victim: {', '.join(models.NAMES)}.")
flags.DEFINE_string("activation", None, f"{', '.join(models.ACTIVATIONS)}.")
flags.DEFINE_string("norm", None, f"{', '.join(models.NORMS)}.")
flags.DEFINE_string("norm_mode", "train", "Batch norm in train or eval mode.")
flags.DEFINE_string("init", None, f"{', '.join(models.INITS)}.")
flags.DEFINE_integer("width", None, "Width of the first layer; the rest scales.")
flags.DEFINE_string(
    "networks", None, f"Untrained networks, one for each target or one: {NETWORKS}."
)
flags.DEFINE_integer("train_steps", 0, "SGD steps (batches of 64) on the victim first.")
flags.DEFINE_string("train_split", None, "Split for training and public images: train.")
flags.DEFINE_float("train_lr", None, "Learning rate of that training: 0.05.")
flags.DEFINE_string(
    "checkpoint", None, "A .safetensors file: loaded if it exists, else written."
)
flags.DEFINE_string("attack", "auto", f"{', '.join(ATTACKS)}.")
flags.DEFINE_integer("batch_size", None, "Images in one update: 1.")
flags.DEFINE_integer("targets", None, "Updates to attack: 4.")
flags.DEFINE_integer("restarts", None, "Random starts, of which the best fit wins: 1.")
flags.DEFINE_integer("steps", None, "Iterations of the attack.")
flags.DEFINE_string("labels", None, f"How the attacker has the labels: {LABELS}.")
flags.DEFINE_float("attack_lr", None, "Learning rate of inverting_gradients.")
flags.DEFINE_float("total_variation", None, "Its weight of total variation.")
flags.DEFINE_integer("local_steps", 0, "Local SGD steps in all (FedAvg); 0: FedSGD.")
flags.DEFINE_integer("local_batch", None, "Their mini-batch: the whole batch.")
flags.DEFINE_float("local_lr", None, "Their learning rate: 0.05.")
flags.DEFINE_bool(
    "local_shuffle", False, "Shuffle every epoch, unknown to the attacker."
)
flags.DEFINE_bool("local_known", True, "The attacker simulates the local steps.")
flags.DEFINE_multi_string(
    "defense",
    [],
    "clip:NORM, gaussian:STD, laplace:SCALE, prune:SHARE, quantise:BITS, sign; "
    "repeatable, applied in order.",
)
flags.DEFINE_bool("defense_known", False, "The attacker adapts to the defense.")
flags.DEFINE_string("update", None, "Attack this .npz or .safetensors update instead.")
flags.DEFINE_string("params", None, "With --update: the params it was computed at.")
flags.DEFINE_string("loss", None, "With --update: module:function, (params, batch).")
flags.DEFINE_list("image_shape", None, "With --update: H,W,C.")
flags.DEFINE_integer("num_classes", None, "With --update: number of classes: 10.")
flags.DEFINE_bool("x64", False, "Compute in float64.")
flags.DEFINE_integer("seed", 0, "Of networks, clients and attacks.")
flags.DEFINE_bool(
    "null_control", True, "Also attack one shuffled update, as a control."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the results: runs/ATTACK-MODEL-DATASET-HASH."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the run in --workdir.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue it after its last target.")


def config_from_flags() -> Config:
    """The flags as a config; not yet checked."""
    values = {
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
    try:
        if len(argv) > 1:
            raise ValueError(f"Unexpected argument {argv[1]!r}: flags start with --.")
        return terminal.reconstruct(
            config_from_flags(),
            _WORKDIR.value,
            overwrite=_OVERWRITE.value,
            resume=_RESUME.value,
        )
    except ValueError as error:
        return _said(error, 2)
    except OSError as error:  # a full disk, a folder that went away
        return _said(error, 1)
    except KeyboardInterrupt:
        return _said("interrupted before there was a result.", terminal.INTERRUPTED)


def parse(argv: list[str]) -> list[str]:
    """Sets the flags; a wrong one is one line and exit code 2, as any bad input."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_said(error, 2))
    except SystemExit:  # absl has printed help, and calls that a failure
        sys.exit(0)


def _said(error, code):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
