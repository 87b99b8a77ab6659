"""The network whose updates are attacked."""

import dataclasses

import models
from invertjax.cli import amounts
from invertjax.cli.setting import setting

NETWORKS = ("per_target", "shared")
NORM_MODES = ("train", "eval")
_MODEL = ("loss", "--model, not --loss")
_DATA = ("update", "data, and --update comes without")


def _one_of(names: tuple[str, ...]) -> str:
    return f"one of {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class Victim:
    """The architecture, and how it was trained."""

    model: str = setting(
        f"The victim, {_one_of(models.NAMES)}. Default: as --attack has it.",
        one_of=models.NAMES,
        without=_MODEL,
    )
    activation: str | None = setting(
        f"Its activation, {_one_of(tuple(models.ACTIVATIONS))}.",
        one_of=tuple(models.ACTIVATIONS),
        without=_MODEL,
    )
    norm: str | None = setting(
        f"Its normalisation, {_one_of(tuple(models.NORMS))}.",
        one_of=tuple(models.NORMS),
        without=_MODEL,
    )
    norm_mode: str = setting(
        f"Statistics of its batch norm, {_one_of(NORM_MODES)}. Default: train.",
        one_of=NORM_MODES,
        without=_DATA,
    )
    init: str | None = setting(
        f"Its initial weights, {_one_of(tuple(models.INITS))}: N(0, 1/fan_in), or "
        "U(-0.5, 0.5).",
        one_of=tuple(models.INITS),
        without=_MODEL,
    )
    width: int | None = setting(
        "Width of its first layer; the others are multiples of it.",
        at_least=1,
        at_most=10**5,
        because=amounts.memory(lambda width: 4.0 * width * width),
        without=_MODEL,
    )
    networks: str = setting(
        f"Untrained networks, {_one_of(NETWORKS)}: a new one for every target, or one "
        "for all. Default: per_target. A trained network serves all.",
        one_of=NETWORKS,
        without=_DATA,
    )
    train_steps: int = setting(
        "Train it first, with so many SGD steps of 64.",
        default=0,
        at_least=0,
        at_most=10**7,
        because=amounts.seconds(1e-3),
        without=_DATA,
    )
    train_lr: float = setting(
        "Learning rate of that training.", default=0.05, above=0, needs="train_steps"
    )
    checkpoint: str | None = setting(
        "A .safetensors file of the trained network: read if it exists, else written.",
        without=("update", "no --update, which has --params"),
        fixed="one file cannot hold the network of every cell",
    )

    @property
    def trained(self) -> bool:
        return bool(self.train_steps) or self.checkpoint is not None


def has_batch_norm(model: str | None, norm: str | None) -> bool:
    """Returns whether a network has a batch norm; False where a loss of the reader's
    own decides."""
    return model is not None and "batch" == (norm or models.DEFAULTS[model].norm)
