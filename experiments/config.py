"""What one reconstruction run is: its settings, their defaults, and their checks.

Everything here is checked before anything is traced and before any file is written.
Every error is a one-line `ValueError` that names the flag, its value and what is right.
"""

import dataclasses
import hashlib
import json

import models
from experiments import defense_flags
from experiments.near import near

ATTACKS = ("auto", "inverting_gradients", "deep_leakage", "idlg", "analytic")
LABELS = ("known", "inferred", "joint")
NETWORKS = ("per_target", "shared")

# What each attack takes where the user is silent. `steps` of None: a closed form.
ATTACK_DEFAULTS = {
    "auto": dict(model="cnn", labels="known", steps=2_000),
    "inverting_gradients": dict(model="cnn", labels="known", steps=2_000),
    "deep_leakage": dict(model="lenet", labels="joint", steps=6_000),
    "idlg": dict(model="lenet", labels="inferred", steps=6_000),
    "analytic": dict(model="mlp", labels="known", steps=None),
}
MATCHES_COSINE = ("auto", "inverting_gradients")  # have a learning rate and a prior


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. None means: not given, take the default of the attack or the model."""

    # Data
    dataset: str = "photos"
    data_dir: str | None = None
    split: str = "test"
    image_size: int | None = None
    # Victim
    model: str | None = None
    activation: str | None = None
    norm: str | None = None
    norm_mode: str = "train"
    init: str | None = None
    width: int | None = None
    networks: str | None = None
    train_steps: int = 0
    train_split: str | None = None
    train_lr: float | None = None
    checkpoint: str | None = None
    # Attack
    attack: str = "auto"
    batch_size: int | None = None
    targets: int | None = None
    restarts: int | None = None
    steps: int | None = None
    labels: str | None = None
    attack_lr: float | None = None
    total_variation: float | None = None
    # Local training (FedAvg); 0 steps: the gradient itself (FedSGD)
    local_steps: int = 0
    local_batch: int | None = None
    local_lr: float | None = None
    local_shuffle: bool = False
    local_known: bool = True
    # Defenses, in order, as NAME:VALUE
    defense: tuple[str, ...] = ()
    defense_known: bool = False
    # An update from the user's own code instead of a data set
    update: str | None = None
    params: str | None = None
    loss: str | None = None
    image_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    # Run
    x64: bool = False
    seed: int = 0
    null_control: bool = True

    @property
    def closed_form(self) -> bool:
        return self.attack == "analytic"

    @property
    def trained(self) -> bool:
        return self.train_steps > 0 or self.checkpoint is not None

    @property
    def digest(self) -> str:
        """Eight characters that differ where any setting does."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def resolve(config: Config) -> Config:
    """Checks a config and fills in its defaults.

    Raises:
      ValueError: naming the first flag that is wrong, its value and what is right.
    """
    _choice("attack", config.attack, ATTACKS)
    defaults = ATTACK_DEFAULTS[config.attack]
    _ranges(config)
    _applies(config)
    model = config.model or (None if config.loss else defaults["model"])
    if model is not None:
        _choice("model", model, models.NAMES)
    labels = config.labels or ("inferred" if config.update else defaults["labels"])
    _choice("labels", labels, LABELS)
    _choice("norm_mode", config.norm_mode, ("train", "eval"))
    if config.networks is not None:
        _choice("networks", config.networks, NETWORKS)
    for text in config.defense:
        defense_flags.parse(text)
    given = config.update is not None
    batch_size = config.batch_size or 1
    return dataclasses.replace(
        config,
        model=model,
        labels=labels,
        batch_size=batch_size,
        targets=1 if given else config.targets or 4,
        restarts=config.restarts or 1,
        steps=0 if config.closed_form else config.steps or defaults["steps"],
        networks="shared"
        if config.trained or given
        else config.networks or "per_target",
        train_split=config.train_split or "train",
        train_lr=config.train_lr or 0.05,
        attack_lr=config.attack_lr or _attack_lr(model, config),
        total_variation=_total_variation(model, batch_size, config)
        if config.total_variation is None
        else config.total_variation,
        local_batch=config.local_batch or batch_size,
        local_lr=config.local_lr or 0.05,
    )


def _attack_lr(model, config):
    return 0.02


def _total_variation(model, batch_size, config):
    return 3e-2


def _choice(flag, value, allowed):
    if value not in allowed:
        raise ValueError(
            f"--{flag}={value} is unknown: expected one of {', '.join(allowed)}"
            f"{near(str(value), allowed)}"
        )


def _ranges(config):
    for flag in ("batch_size", "targets", "restarts", "steps", "local_batch", "width"):
        value = getattr(config, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag}={value} is too small: expected 1 or more.")
    for flag in ("train_steps", "local_steps", "seed"):
        if getattr(config, flag) < 0:
            raise ValueError(
                f"--{flag}={getattr(config, flag)} is negative: expected 0 or more."
            )
    for flag in ("attack_lr", "local_lr", "train_lr"):
        value = getattr(config, flag)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{flag}={value} is not a positive number.")
    value = config.total_variation
    if value is not None and not 0 <= value < float("inf"):
        raise ValueError(f"--total_variation={value}: expected 0 or more.")
    if config.image_size is not None and config.image_size < 8:
        raise ValueError(f"--image_size={config.image_size}: expected 8 or more.")


def _applies(config):
    """Refuses flags that would silently do nothing."""
    given = config.update is not None
    # (flag, whether it was given, whether it applies, what it needs)
    rules = [
        ("restarts", config.restarts, not config.closed_form, "an iterative attack"),
        ("steps", config.steps, not config.closed_form, "an iterative attack"),
        *(
            (flag, getattr(config, flag), config.attack in MATCHES_COSINE, _COSINE)
            for flag in ("attack_lr", "total_variation")
        ),
        *(
            (flag, getattr(config, flag), config.local_steps > 0, "--local_steps")
            for flag in ("local_batch", "local_lr", "local_shuffle")
        ),
        (
            "local_known",
            not config.local_known,
            config.local_steps > 0,
            "--local_steps",
        ),
        ("train_lr", config.train_lr, config.train_steps > 0, "--train_steps"),
        ("train_split", config.train_split, not given, "no --update"),
        ("networks", config.networks == "per_target", not config.trained, _UNTRAINED),
        ("defense_known", config.defense_known, bool(config.defense), "--defense"),
        ("params", config.params, given, "--update"),
        ("loss", config.loss, given, "--update"),
        ("image_shape", config.image_shape, given, "--update"),
        ("num_classes", config.num_classes, given, "--update"),
        ("model", config.model, not config.loss, "no --loss"),
        ("targets", config.targets, not given, "no --update"),
        ("train_steps", config.train_steps, not given, "no --update"),
        ("checkpoint", config.checkpoint, not given, "no --update: give --params"),
    ]
    for flag, present, applies, needs in rules:
        if present and not applies:
            raise ValueError(
                f"--{flag}={getattr(config, flag)} does not apply here: it needs {needs}."
            )
    _labels_apply(config)
    if given:
        _given_update(config)


_COSINE = "--attack=inverting_gradients"
_UNTRAINED = "an untrained network: a trained one serves all targets"


def _labels_apply(config):
    single = config.attack in ("analytic", "idlg")
    if single and (config.batch_size or 1) > 1:
        raise ValueError(
            f"--batch_size={config.batch_size} does not fit --attack={config.attack}: "
            "it reads a single image; expected 1."
        )
    if config.attack == "idlg" and config.labels not in (None, "inferred"):
        raise ValueError(
            f"--labels={config.labels} does not apply to --attack=idlg, which infers it."
        )
    if config.attack in ("analytic", "auto") and config.labels == "joint":
        raise ValueError(
            f"--labels=joint does not apply to --attack={config.attack}: expected known "
            "or inferred."
        )
    local = config.local_batch
    if local is not None and local > (config.batch_size or 1):
        raise ValueError(
            f"--local_batch={local} is larger than --batch_size={config.batch_size or 1}."
        )


def _given_update(config):
    for flag in ("params", "batch_size", "image_shape"):
        if getattr(config, flag) is None:
            raise ValueError(f"--update={config.update} needs --{flag} as well.")
    if len(config.image_shape) != 3 or min(config.image_shape) < 1:
        raise ValueError(
            f"--image_shape={','.join(map(str, config.image_shape))}: expected H,W,C, "
            "e.g. 32,32,3."
        )
    if config.model is None and config.loss is None:
        raise ValueError(
            f"--update={config.update} needs --model=NAME or --loss=module:function."
        )
    if config.labels == "known":
        raise ValueError(
            "--labels=known does not apply to --update, which comes without labels: "
            "expected inferred or joint."
        )
