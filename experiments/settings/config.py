"""What one reconstruction run is: its settings, their defaults, and their checks.

Everything here is checked before anything is traced and before any file is written.
Every error is a one-line `ValueError` that names the flag, its value and what is right.
"""

import dataclasses
import hashlib
import json
from typing import Any

from experiments.settings import checks

# What each attack takes where the user is silent. `steps` of None: a closed form.
ATTACK_DEFAULTS = {
    "auto": dict(model="cnn", labels="known", steps=2_000),
    "inverting_gradients": dict(model="cnn", labels="known", steps=2_000),
    "posterior": dict(model="cnn", labels="known", steps=2_000),
    "gauss_newton": dict(model="lenet", labels="known", steps=50),
    "deep_leakage": dict(model="lenet", labels="joint", steps=6_000),
    "idlg": dict(model="lenet", labels="inferred", steps=6_000),
    "analytic": dict(model="mlp", labels="known", steps=None),
    "recursive": dict(model="lenet", labels="known", steps=None),
}

SIGNED = dict(attack_lr=0.02, total_variation=0.03)  # of inverting_gradients

NOT_GIVEN: Any = None  # of any type, as `resolve` fills it in


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. What is None was not given; `resolve` puts in the defaults.

    What is None afterwards is the model's or the data set's own, or does not apply.
    """

    # Data
    dataset: str = NOT_GIVEN
    data_dir: str | None = None
    split: str = NOT_GIVEN
    image_size: int | None = None
    # Victim
    model: str = NOT_GIVEN
    activation: str | None = None
    norm: str | None = None
    norm_mode: str = NOT_GIVEN
    init: str | None = None
    width: int | None = None
    networks: str = NOT_GIVEN
    train_steps: int = NOT_GIVEN
    train_split: str = NOT_GIVEN
    train_lr: float = NOT_GIVEN
    checkpoint: str | None = None
    # Attack
    attack: str = "auto"
    batch_size: int = NOT_GIVEN
    targets: int = NOT_GIVEN
    restarts: int = NOT_GIVEN
    steps: int = NOT_GIVEN
    warm_start: str | None = None
    stop: str = NOT_GIVEN
    labels: str = NOT_GIVEN
    attack_lr: float = NOT_GIVEN
    total_variation: float = NOT_GIVEN
    # Local training (FedAvg); 0 steps: the gradient itself (FedSGD)
    local_steps: int = NOT_GIVEN
    local_batch: int = NOT_GIVEN
    local_lr: float = NOT_GIVEN
    local_shuffle: bool = NOT_GIVEN
    local_known: bool = NOT_GIVEN
    # Defenses, in order, as NAME:VALUE
    defense: tuple[str, ...] = ()
    defense_known: bool = NOT_GIVEN
    # An update from the user's own code instead of a data set
    update: str | None = None
    params: str | None = None
    loss: str | None = None
    image_shape: tuple[int, ...] = NOT_GIVEN
    num_classes: int | None = None
    # Run
    x64: bool = False
    seed: int = 0
    null_control: bool = NOT_GIVEN

    @property
    def closed_form(self) -> bool:
        return self.attack in checks.CLOSED_FORMS

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
    """Checks a config and fills in its defaults; what is resolved stays as it is.

    Raises:
      ValueError: naming the first flag that is wrong, its value and what is right.
    """
    checks.choices(config)
    checks.ranges(config)
    model = config.model or ATTACK_DEFAULTS[config.attack]["model"]
    model = None if config.loss and not config.model else model
    checks.applies(config, model)
    silent = {
        flag: value
        for flag, value in _defaults(config, model).items()
        if getattr(config, flag) is None
    }
    return dataclasses.replace(config, **silent)


def _defaults(config, model):
    """Of the flags that apply; the others stay None."""
    defaults = ATTACK_DEFAULTS[config.attack]
    batch_size = config.batch_size or 1
    filled = dict(model=model, labels=defaults["labels"], batch_size=batch_size)
    if config.update is None:
        filled |= dict(dataset="photos", split="test", train_split="train", targets=4)
        filled |= dict(networks="shared" if config.trained else "per_target")
        filled |= dict(train_steps=0, null_control=True)
        if checks.has_batch_norm(config, model):
            filled |= dict(norm_mode="train")
    elif filled["labels"] == "known":
        filled["labels"] = "inferred"
    if not config.closed_form:
        filled |= dict(restarts=1, steps=defaults["steps"], stop="never")
    if config.attack in checks.MATCHES_COSINE:
        filled |= SIGNED
    if config.attack == "posterior":
        filled |= dict(attack_lr=0.02)
    if config.train_steps:
        filled |= dict(train_lr=0.05)
    filled |= dict(local_steps=0)
    if config.local_steps:
        filled |= dict(local_batch=batch_size, local_lr=0.05)
        filled |= dict(local_shuffle=False, local_known=True)
    if config.defense:
        filled |= dict(defense_known=config.attack == "posterior")
    return filled
