"""Networks to attack and to train, as pure functions.

`build("lenet", image_shape=(32, 32, 3), num_classes=10)` returns a `Network`. To add an
architecture, write one file with an `Architecture`, import it and add its row below.
"""

import difflib
import numbers
from collections.abc import Iterable, Sequence

from models.cnn import CNN
from models.convnet import CONVNET
from models.convnet5 import CONVNET5
from models.layers import ACTIVATIONS, INITS, NORMS
from models.lenet import LENET
from models.mlp import MLP
from models.network import Network, network
from models.resnet import RESNET18, RESNET20
from models.spec import Architecture, Defaults, Spec

__all__ = [
    "ACTIVATIONS",
    "DEFAULTS",
    "INITS",
    "NAMES",
    "NORMS",
    "STEMS",
    "Architecture",
    "Defaults",
    "Network",
    "Spec",
    "build",
    "network",
]

_ARCHITECTURES: dict[str, Architecture] = {
    "mlp": MLP,
    "cnn": CNN,
    "lenet": LENET,
    "convnet5": CONVNET5,
    "convnet": CONVNET,
    "resnet20": RESNET20,
    "resnet18": RESNET18,
}

NAMES = tuple(_ARCHITECTURES)
DEFAULTS = {name: item.defaults for name, item in _ARCHITECTURES.items()}
STEMS = ("cifar", "imagenet")

# Of CIFAR-10's training images. One channel may be digits, clothes or scans: neutral.
_RGB = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_OTHER = 0.5, 0.25


def build(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    activation: str | None = None,
    norm: str | None = None,
    init: str | None = None,
    width: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stem: str | None = None,
    hidden: int | None = None,
) -> Network:
    """Builds a network whose first layer is (image - mean) / std.

    What is None is the architecture's own: `DEFAULTS[name]`.

    Args:
      name: one of `NAMES`.
      image_shape: (height, width, channels).
      num_classes: number of logits, at least 1.
      activation: a key of `ACTIVATIONS`: sigmoid, tanh, relu, gelu, silu or leaky.
      norm: a key of `NORMS`, between layer and activation: none, batch, group or layer
        (one group over height, width and channels).
      init: "default" (weights N(0, 1 / fan_in), biases zero) or "wide" (both uniform in
        (-0.5, 0.5), as in Zhu et al., 2019).
      width: channels (or units) of the first layer; the others are multiples of it.
      mean: one value a channel; CIFAR-10's for three channels, else 0.5.
      std: one positive value a channel; CIFAR-10's for three channels, else 0.25.
      stem: "cifar" or "imagenet", for resnet18 only; "imagenet" from 64 pixels on.
      hidden: units of the dense layer before the last one: of cnn (100), resnet20 and
        resnet18 (no such layer) only.

    Returns:
      A `Network`.

    Raises:
      ValueError: an unknown name or size; images too small for the architecture.
    """
    architecture = _ARCHITECTURES[_choice("name", name, NAMES)]
    defaults = architecture.defaults
    image_shape = _image_shape(image_shape)
    channels = image_shape[2]
    spec = Spec(
        image_shape=image_shape,
        num_classes=_positive("num_classes", num_classes),
        activation=_choice(
            "activation", _or(activation, defaults.activation), ACTIVATIONS
        ),
        norm=_choice("norm", _or(norm, defaults.norm), NORMS),
        init=_choice("init", _or(init, defaults.init), INITS),
        width=_positive("width", _or(width, defaults.width)),
        stem=_stem(name, stem, image_shape),
        hidden=_hidden(name, hidden),
    )
    means, stds = _RGB if channels == 3 else tuple((c,) * channels for c in _OTHER)
    means = _per_channel("mean", _or(mean, means), channels)
    stds = _per_channel("std", _or(std, stds), channels)
    if min(stds) <= 0:
        raise ValueError(f"Expected std={stds} > 0.")
    return network(lambda rngs: architecture.make(spec, rngs), image_shape, means, stds)


def _or(value, default):
    return default if value is None else value


def _choice(argument: str, value: str, allowed: Iterable[str]) -> str:
    allowed = tuple(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"Expected {argument}={value!r} to be one of {', '.join(allowed)}.{hint}"
    )


def _positive(argument: str, value: int) -> int:
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"Expected {argument}={value!r} to be a whole number > 0.")
    return int(value)


def _image_shape(value: Sequence[int]) -> tuple[int, int, int]:
    if len(value) != 3:
        raise ValueError(
            f"Expected image_shape={tuple(value)} to be (height, width, channels)."
        )
    height, width, channels = (_positive("image_shape", n) for n in value)
    return height, width, channels


def _per_channel(
    argument: str, value: Sequence[float], channels: int
) -> tuple[float, ...]:
    if len(value) != channels:
        raise ValueError(
            f"Expected {argument}={tuple(value)} with one value a channel: {channels}."
        )
    return tuple(float(v) for v in value)


def _hidden(name: str, hidden: int | None) -> int | None:
    default = DEFAULTS[name].hidden
    if hidden is None:
        return default if isinstance(default, int) else None
    if default is None:
        choosers = [n for n in NAMES if DEFAULTS[n].hidden is not None]
        raise ValueError(
            f"Expected hidden={hidden!r} with name={', '.join(choosers)} only; {name} "
            "has no such layer."
        )
    return _positive("hidden", hidden)


def _stem(name: str, stem: str | None, image_shape: tuple[int, int, int]) -> str | None:
    if DEFAULTS[name].stem is None:
        if stem is not None:
            choosers = [n for n in NAMES if DEFAULTS[n].stem is not None]
            raise ValueError(
                f"Expected stem={stem!r} with name={', '.join(choosers)} only; "
                f"{name} has one stem."
            )
        return None
    if stem is None:
        return "imagenet" if min(image_shape[:2]) >= 64 else "cifar"
    return _choice("stem", stem, STEMS)
