"""The settings of a run as flags, for every command line that has them."""

import dataclasses
from typing import Any

from absl import flags

import models
from experiments.settings.checks import (
    ATTACKS,
    LABELS,
    NETWORKS,
    NORM_MODES,
    STOPS,
    WARM_STARTS,
)
from experiments.settings.config import Config
from experiments.settings.defense_kinds import KINDS


def _one_of(names):
    return f"one of {', '.join(names)}"


def _described(sort):
    """The defenses of one sort, with what each expects."""
    return "; ".join(
        f"{name}, {kind.expected}"
        for name, kind in KINDS.items()
        if getattr(kind, sort)
    )


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
    "closed form, else inverting_gradients. posterior: for noise that is known.",
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
    "50.",
)
flags.DEFINE_string(
    "warm_start",
    None,
    f"An attack that the images start from, {_one_of(WARM_STARTS)}, with its own "
    "defaults; recursive before gauss_newton. Default: noise, or grey.",
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
flags.DEFINE_float(
    "attack_lr", None, "Learning rate of inverting_gradients and posterior."
)
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
    "What the client does to protect its data, as NAME:VALUE. Repeatable, applied in "
    "order. To the update that it shares: "
    f"{_described('update')}. To how it computes its gradient: {_described('client')}. "
    f"To the network: {_described('network')}.",
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
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the results. Default: runs/ATTACK-MODEL-DATASET-HASH.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the run in --workdir.")


def config_from_flags() -> Config:
    """The flags as a config; not yet checked."""
    return Config(**_values([field.name for field in dataclasses.fields(Config)]))


def given_flags() -> dict[str, Any]:
    """The settings that the command line gives, of a config's."""
    names = [field.name for field in dataclasses.fields(Config)]
    return _values([name for name in names if flags.FLAGS[name].present])


def _values(names):
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    if "defense" in values:
        values["defense"] = tuple(values["defense"])
    if values.get("image_shape") is not None:
        try:
            values["image_shape"] = tuple(int(side) for side in values["image_shape"])
        except ValueError:
            raise ValueError(
                f"--image_shape={','.join(values['image_shape'])}: expected H,W,C, "
                "e.g. 32,32,3."
            ) from None
    return values
