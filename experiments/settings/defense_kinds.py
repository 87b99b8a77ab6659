"""The defenses that command lines offer, by name."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from invertjax import defenses, distances
from invertjax.base import Client, Distance


class Parts(NamedTuple):
    """What some defenses need to know of a network.

    num_classes: K.
    features: `(params, images) -> [B, F]`, the input of the last dense layer; None for
      a loss of the reader's own.
    path: of that layer, such as "layers/2".
    """

    num_classes: int
    features: Callable | None = None
    path: str = ""


class Kind(NamedTuple):
    """A defense, of one of three sorts: `update`, `client` or `network`.

    read: what is behind the colon as a value, or None if that is out of range.
    expected: the range in words.
    update: `(key, value) -> optax.GradientTransformation`, changes what is shared.
    client: `(client, value, parts) -> Client`, changes how a gradient is computed.
    network: whether it changes the network instead; see `stochastic`.
    simulated: `client` as an attacker who knows of it simulates it, if other.
    adapt: `(distance, value) -> distance` of an attacker who knows it, if there is such
      a form.
    fixed: whether the value is part of a program, not an array in it.
    told: whether the attacker who knows of it is told what the client drew.
    """

    read: Callable[[str], Any]
    expected: str
    update: Callable | None = None
    client: Callable[[Client, Any, Parts], Client] | None = None
    network: bool = False
    simulated: Callable[[Client, Any, Parts], Client] | None = None
    adapt: Callable[[Distance, Any], Distance] | None = None
    fixed: bool = False
    told: bool = False


def undefended(client: Client, value: Any, parts: Parts) -> Client:
    """How an attacker simulates what he cannot, or need not."""
    del value, parts
    return client


def _number(accepts: Callable[[float], bool]) -> Callable[[str], float | None]:
    def read(text):
        try:
            number = float(text)
        except ValueError:
            return None
        return number if accepts(number) else None

    return read


def _whole(least: int) -> Callable[[str], int | None]:
    def read(text):
        return int(text) if text.isdecimal() and int(text) >= least else None

    return read


def _numbers(*accepts: Callable[[float], bool], defaults: tuple) -> Callable:
    """As many numbers as `accepts` has, by commas; the last ones have defaults."""

    def read(text):
        given = text.split(",")
        if len(given) > len(accepts):
            return None
        found = [_number(one)(part) for one, part in zip(accepts, given, strict=False)]
        found += defaults[len(defaults) - len(accepts) + len(given) :]
        return None if None in found or len(found) < len(accepts) else tuple(found)

    return read


def _policy(text: str) -> str | None:
    try:
        defenses.ats(lambda params, batch, key: params, text)
    except ValueError:
        return None
    return text


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def _share(value: float) -> bool:
    return 0 <= value < 1


def _masked(distance: Distance, value: Any) -> Distance:
    del value
    return distances.masked(distance)


def _clipped(distance: Distance, max_norm: Any) -> Distance:
    """The distance once the guess's update is clipped as well."""
    clip = defenses.clip(max_norm)

    def residual(guess, observed):
        guess, _ = clip.update(guess, clip.init(guess))
        return distance.residual(guess, observed)

    return Distance(residual, distance.reduce)


_NORM = "a positive norm"
_ZEROED = "the share set to zero, in [0, 1)"
_BITS = "a whole number of bits, 2 to 32"
_IMAGES = "a whole number of images mixed, 2 or more"


def _bits(value: float) -> bool:
    return value.is_integer() and 2 <= value <= 32


KINDS = {
    "clip": Kind(
        _number(_positive),
        "a positive global norm",
        update=lambda key, value: defenses.clip(value),
        adapt=_clipped,
    ),
    "clip_layers": Kind(
        _number(_positive), _NORM, update=lambda key, value: defenses.clip_layers(value)
    ),
    "gaussian": Kind(
        _number(_not_negative),
        "a standard deviation >= 0",
        update=defenses.gaussian_noise,
    ),
    "laplace": Kind(
        _number(_not_negative), "a scale >= 0", update=defenses.laplace_noise
    ),
    "orthogonal": Kind(
        _number(_not_negative),
        "noise as a multiple of every layer's norm, >= 0",
        update=defenses.orthogonal_noise,
    ),
    "prune": Kind(
        _number(_share),
        _ZEROED,
        update=lambda key, value: defenses.prune(value),
        adapt=_masked,
    ),
    "top_k": Kind(
        _number(_share),
        f"{_ZEROED} over the whole update",
        update=lambda key, value: defenses.prune(value, whole=True),
        adapt=_masked,
    ),
    "top_k_feedback": Kind(
        _number(_share),
        f"{_ZEROED} over the whole update",
        update=lambda key, value: defenses.error_feedback(
            defenses.prune(value, whole=True)
        ),
        adapt=_masked,
    ),
    "sparsify": Kind(_number(_share), _ZEROED, update=defenses.sparsify, adapt=_masked),
    "drop": Kind(
        _number(lambda value: value.is_integer() and value >= 0),
        "a whole number of first layers",
        update=lambda key, value: defenses.drop(value),
        adapt=_masked,
    ),
    "quantise": Kind(
        _number(_bits), _BITS, update=lambda key, value: defenses.quantise(value)
    ),
    "stochastic_quantise": Kind(
        _number(_bits), _BITS, update=defenses.stochastic_quantise
    ),
    "sign": Kind(lambda text: None, "no value", update=lambda key, _: defenses.sign()),
    "outpost": Kind(
        _number(_not_negative),
        "a base of the noise >= 0",
        update=defenses.outpost,
    ),
    "dp_sgd": Kind(
        _numbers(_not_negative, _positive, defaults=(1.0,)),
        "a noise multiplier >= 0, and after a comma a clipping norm > 0 (default 1)",
        client=lambda client, value, _: defenses.dp_sgd(client, value[1], value[0]),
        simulated=lambda client, value, _: defenses.dp_sgd(client, value[1], 0.0),
    ),
    "soteria": Kind(
        _number(_share),
        "the share of the representation's units that is masked, in [0, 1)",
        client=lambda client, value, parts: defenses.soteria(
            client, parts.features, parts.path, value
        ),
        simulated=undefended,
        adapt=_masked,
    ),
    "mixup": Kind(
        _whole(2),
        _IMAGES,
        client=lambda client, value, parts: defenses.mixup(
            client, parts.num_classes, count=value
        ),
        fixed=True,
        told=True,  # labels that are known give the mixture away
    ),
    "instahide": Kind(
        _whole(2),
        _IMAGES,
        client=lambda client, value, parts: defenses.instahide(
            client, parts.num_classes, count=value
        ),
        simulated=undefended,
        fixed=True,
    ),
    "ats": Kind(
        _policy,
        "transformations, e.g. 3-1-7",
        client=lambda client, value, _: defenses.ats(client, value),
        fixed=True,
        told=True,  # they are few: all can be tried
    ),
    "precode": Kind(
        _whole(1), "the units of the bottleneck, e.g. 256", network=True, fixed=True
    ),
    "dropout": Kind(
        _number(_share), "the share left out, in [0, 1)", network=True, fixed=True
    ),
}
