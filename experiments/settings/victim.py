"""The network whose updates are attacked."""

import dataclasses

import models
from invertjax.cli import amounts, own_code
from invertjax.cli.setting import Besides, setting

NETWORKS = ("per_target", "shared")
# What models of the reader have not.
OURS = ("activation", "norm", "init", "width", "hidden", "normalise")
NORMALISATIONS = ("usual", "none")
NORM_MODES = ("train", "eval")
_DATA = ("update", "data, and --update comes without")


def _one_of(names: tuple[str, ...]) -> str:
    return f"one of {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class Victim:
    """The architecture, and how it was trained."""

    model: str = setting(
        f"The victim, {_one_of(models.NAMES)}; default: as --attack has it. One of "
        "your own is a module class of Flax, Equinox or PyTorch, or a function that "
        "returns a module or an adapters.Adapted; it is called with those of "
        "image_shape, num_classes, rngs and key that it names.",
        one_of=models.NAMES,
        besides=Besides("package.module:name of your own code", own_code.is_named),
    )
    loss: str | None = setting(
        "module:function of your own, in JAX. With --model: (logits, labels) -> scalar "
        "in place of cross-entropy. Without, and with --update: (params, batch) -> "
        'scalar; batch has "image" [B, H, W, C] in [0, 1] and "label" [B] (with '
        "--labels=joint [B, K]).",
        column="loss_function",
    )
    activation: str | None = setting(
        f"Its activation, {_one_of(tuple(models.ACTIVATIONS))}.",
        one_of=tuple(models.ACTIVATIONS),
    )
    norm: str | None = setting(
        f"Its normalisation, {_one_of(tuple(models.NORMS))}.",
        one_of=tuple(models.NORMS),
    )
    norm_mode: str = setting(
        f"Statistics of its batch norm, {_one_of(NORM_MODES)}: those of the client's "
        "batch, or the running ones. Default: train; with a model of your own there "
        "is none.",
        one_of=NORM_MODES,
    )
    init: str | None = setting(
        f"Its initial weights, {_one_of(tuple(models.INITS))}: N(0, 1/fan_in), or "
        "U(-0.5, 0.5).",
        one_of=tuple(models.INITS),
    )
    width: int | None = setting(
        "Width of its first layer; the others are multiples of it.",
        at_least=1,
        at_most=10**5,
        because=amounts.memory(lambda width: 4.0 * width * width),
    )
    hidden: int | None = setting(
        "Units of the dense layer before the last one, of cnn (default 100), resnet20 "
        "and resnet18 (default: no such layer).",
        later=True,
        at_least=1,
        at_most=10**5,
        because=amounts.memory(lambda hidden: 4.0 * 1e3 * hidden),
    )
    normalise: str | None = setting(
        f"What it does to pixels first, {_one_of(NORMALISATIONS)}: (pixel - mean) / "
        "std, or nothing, so that it sees [0, 1]. Default: usual.",
        later=True,
        one_of=NORMALISATIONS,
    )
    networks: str = setting(
        f"Untrained networks, {_one_of(NETWORKS)}: a new one for every target, or one "
        "for all. Default: per_target; shared where it is trained, or a model of your "
        "own makes no fresh weights.",
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

    @property
    def named(self) -> str:
        """The flags of what the reader's own code may be part of."""
        parts = {"model": self.model, "loss": self.loss}
        return " ".join(f"--{flag}={text}" for flag, text in parts.items() if text)


def is_own(model: str | None) -> bool:
    """Returns whether a model is of the reader's own code."""
    return model is not None and own_code.is_named(model)


def has_batch_norm(
    model: str | None, norm: str | None, norm_mode: str | None = None
) -> bool:
    """Returns whether a network has a batch norm; False where a loss of the reader's
    own decides. A model of the reader's own has one where a mode of it is given, which
    is checked once the model is made."""
    if model is None or is_own(model):
        return model is not None and norm_mode is not None
    return "batch" == (norm or models.DEFAULTS[model].norm)
