"""What a network is built from, and what an architecture says about itself."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx


class Spec(NamedTuple):
    """Everything that an architecture needs to know, checked by `models.build`.

    Attributes:
      image_shape: (height, width, channels).
      num_classes: number of logits.
      activation: a key of `layers.ACTIVATIONS`.
      norm: a key of `layers.NORMS`.
      init: a key of `layers.INITS`.
      width: channels (or units) of the first layer; the others are multiples of it.
      stem: "cifar" or "imagenet" where the architecture has the choice, else None.
      hidden: units of the dense layer before the last one; None where there is none.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    activation: str
    norm: str
    init: str
    width: int
    stem: str | None
    hidden: int | None = None


class Defaults(NamedTuple):
    """What an architecture uses where nothing else is asked for; see `Spec`.

    `stem` is "auto" (chosen by the size of the images) or None (there is no choice).
    `hidden` is "none" where such a layer may be added, None where it may not.
    """

    activation: str
    norm: str
    init: str
    width: int
    stem: str | None = None
    hidden: int | str | None = None


class Architecture(NamedTuple):
    """`make(spec, rngs)` returns a module from normalised images to logits.

    The module is `head(features(images))`; `head` is its last layer, dense with a bias,
    and `last` the path of that in the params. Layers that behave differently in
    evaluation have an attribute `use_running_average`, which `Network.apply` sets.
    """

    make: Callable[[Spec, nnx.Rngs], nnx.Module]
    defaults: Defaults
