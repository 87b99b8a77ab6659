"""What one reconstruction run is: its settings, their defaults, and their checks.

Everything here is checked before anything is traced and before any file is written.
Every error is a one-line `ValueError` that names the flag, its value and what is right.
"""

import dataclasses
import hashlib
import json

from experiments import checks

# What each attack takes where the user is silent. `steps` of None: a closed form.
ATTACK_DEFAULTS = {
    "auto": dict(model="cnn", labels="known", steps=2_000),
    "inverting_gradients": dict(model="cnn", labels="known", steps=2_000),
    "deep_leakage": dict(model="lenet", labels="joint", steps=6_000),
    "idlg": dict(model="lenet", labels="inferred", steps=6_000),
    "analytic": dict(model="mlp", labels="known", steps=None),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. None means: not given, take the default of the attack or the model."""

    # Data
    dataset: str | None = None
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    # Victim
    model: str | None = None
    activation: str | None = None
    norm: str | None = None
    norm_mode: str | None = None
    init: str | None = None
    width: int | None = None
    networks: str | None = None
    train_steps: int | None = None
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
    local_steps: int | None = None
    local_batch: int | None = None
    local_lr: float | None = None
    local_shuffle: bool | None = None
    local_known: bool | None = None
    # Defenses, in order, as NAME:VALUE
    defense: tuple[str, ...] = ()
    defense_known: bool | None = None
    # An update from the user's own code instead of a data set
    update: str | None = None
    params: str | None = None
    loss: str | None = None
    image_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    # Run
    x64: bool = False
    seed: int = 0
    null_control: bool | None = None

    @property
    def closed_form(self) -> bool:
        return self.attack == "analytic"

    @property
    def trained(self) -> bool:
        return bool(self.train_steps) or self.checkpoint is not None

    @property
    def dtype(self) -> str:
        return "float64" if self.x64 else "float32"

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
    checks.choices(config)
    checks.ranges(config)
    defaults = ATTACK_DEFAULTS[config.attack]
    model = config.model or (None if config.loss else defaults["model"])
    checks.applies(config, model)
    batch_size = config.batch_size or 1
    filled = dict(
        model=model,
        labels=defaults["labels"],
        batch_size=batch_size,
        restarts=1,
        steps=0 if config.closed_form else defaults["steps"],
        attack_lr=_attack_lr(model, config),
        total_variation=_total_variation(model, batch_size, config),
        norm_mode="train",
        train_steps=0,
        train_lr=0.05,
        local_steps=0,
        local_batch=batch_size,
        local_lr=0.05,
        local_shuffle=False,
        local_known=True,
        defense_known=False,
        null_control=True,
    )
    if config.update is None:
        filled |= dict(dataset="photos", split="test", train_split="train", targets=4)
        filled |= dict(networks="shared" if config.trained else "per_target")
    else:
        filled |= dict(targets=1, networks="shared", null_control=False)
        if filled["labels"] == "known":
            filled["labels"] = "inferred"
    silent = {
        flag: value for flag, value in filled.items() if getattr(config, flag) is None
    }
    return dataclasses.replace(config, **silent)


def _attack_lr(model, config):
    return 0.02


def _total_variation(model, batch_size, config):
    return 3e-2
