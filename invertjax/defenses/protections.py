"""One row a defense: its range, its meaning, and how an attacker who knows adapts.

To add a defense, write its file, export it in `invertjax/defenses/__init__.py`, and add
its row here. Command lines, sweeps, tables, figures and adaptive attacks read the row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from invertjax import distances
from invertjax.base import Distance
from invertjax.defenses import clipping, noise, rebuilt, values
from invertjax.defenses.ats import ats
from invertjax.defenses.dp_sgd import dp_sgd
from invertjax.defenses.dropping import drop
from invertjax.defenses.feedback import error_feedback
from invertjax.defenses.instahide import instahide
from invertjax.defenses.mixup import mixup
from invertjax.defenses.orthogonal import orthogonal_noise
from invertjax.defenses.outpost import outpost
from invertjax.defenses.protection import (
    Protection,
    Training,
    undefended,
)
from invertjax.defenses.pruning import prune
from invertjax.defenses.quantisation import quantise, stochastic_quantise
from invertjax.defenses.signs import sign
from invertjax.defenses.soteria import soteria
from invertjax.defenses.sparsification import sparsify


class Row(NamedTuple):
    """A defense as it is offered by name.

    protection: without a value.
    read: from a text to the value, None where the text is no value in range. None: it
      has no strength.
    expected: that range, in words.
    """

    protection: Protection
    read: Callable[[str], Any] | None
    expected: str


def of(name: str, value: Any = None) -> Protection:
    """Returns a defense at a strength, e.g. `protections.of("prune", 0.99)`.

    Args:
      name: of a row of `PROTECTIONS`.
      value: its strength; a number may be traced.

    Raises:
      ValueError: on an unknown name.
    """
    if name not in PROTECTIONS:
        raise ValueError(
            f"Expected name={name!r} to be one of {', '.join(PROTECTIONS)}."
        )
    return PROTECTIONS[name].protection._replace(value=value)


# What who knows of a defense does


def _masked(distance: Distance, value: Any) -> Distance:
    del value
    return distances.masked(distance)


def _clipped(distance: Distance, max_norm: Any) -> Distance:
    """Returns the distance once the guess's update is clipped as well."""
    clip = clipping.clip(max_norm)

    def residual(guess: Any, observed: Any) -> Any:
        guess, _ = clip.update(guess, clip.init(guess))
        return distance.residual(guess, observed)

    return Distance(residual, distance.reduce)


def _dp_sgd_noise(value: Any, training: Training) -> Any:
    """Returns the noise of a gradient, z C / B, or that of several local steps.

    How the noise of one step changes the gradients of later ones is left out.
    """
    each = value[0] * value[1] / training.images
    if not training.steps:
        return each
    return training.learning_rate * training.steps**0.5 * each


def _keyless(
    make: Callable[..., optax.GradientTransformation], **options: Any
) -> Callable[[Any, Any], optax.GradientTransformation]:
    """Returns `(key, value) -> transform` of a defense that draws nothing."""
    return lambda key, value: make(value, **options)


_ZEROED = "the share set to zero, in [0, 1)"
_OF_ALL = f"{_ZEROED} over the whole update"
_BITS = "a whole number of bits, 2 to 32"
_IMAGES = "a whole number of images mixed, 2 or more"


def _row(name: str, read: Callable | None, expected: str, **facts: Any) -> Row:
    return Row(Protection(name, **facts), read, expected)


_ROWS = (
    _row(
        "clip",
        values.number(values.positive),
        "a positive global norm",
        update=_keyless(clipping.clip),
        adapt=_clipped,
        unit="norm",
    ),
    _row(
        "clip_layers",
        values.number(values.positive),
        "a positive norm",
        update=_keyless(clipping.clip_layers),
        unit="norm of a layer",
    ),
    _row(
        "gaussian",
        values.number(values.not_negative),
        "a standard deviation >= 0",
        update=noise.gaussian_noise,
        law="gaussian",
        unit="standard deviation",
    ),
    _row(
        "laplace",
        values.number(values.not_negative),
        "a scale >= 0",
        update=noise.laplace_noise,
        law="laplace",
        unit="scale",
    ),
    _row(
        "orthogonal",
        values.number(values.not_negative),
        "noise as a multiple of every layer's norm, >= 0",
        update=orthogonal_noise,
        unit="times the norm",
    ),
    _row(
        "prune",
        values.number(values.share),
        _ZEROED,
        update=_keyless(prune),
        adapt=_masked,
        unit="share zeroed",
    ),
    _row(
        "top_k",
        values.number(values.share),
        _OF_ALL,
        update=_keyless(prune, whole=True),
        adapt=_masked,
        unit="share zeroed",
    ),
    _row(
        "top_k_feedback",
        values.number(values.share),
        _OF_ALL,
        update=lambda key, value: error_feedback(prune(value, whole=True)),
        adapt=_masked,
        unit="share zeroed",
    ),
    _row(
        "sparsify",
        values.number(values.share),
        _ZEROED,
        update=sparsify,
        adapt=_masked,
        unit="share zeroed",
    ),
    _row(
        "drop",
        values.number(lambda value: value.is_integer() and value >= 0),
        "a whole number of first layers",
        update=_keyless(drop),
        adapt=_masked,
        unit="layers",
    ),
    _row(
        "quantise",
        values.number(values.bits),
        _BITS,
        update=_keyless(quantise),
        unit="bits",
    ),
    _row(
        "stochastic_quantise",
        values.number(values.bits),
        _BITS,
        update=stochastic_quantise,
        unit="bits",
    ),
    _row("sign", None, "no value", update=lambda key, _: sign()),
    _row(
        "outpost",
        values.number(values.not_negative),
        "a base of the noise >= 0",
        update=outpost,
        unit="base of the noise",
    ),
    _row(
        "dp_sgd",
        values.numbers(values.not_negative, values.positive, defaults=(1.0,)),
        "a noise multiplier >= 0, and after a comma a clipping norm > 0 (default 1)",
        client=lambda client, value, _: dp_sgd(client, value[1], value[0]),
        simulated=lambda client, value, _: dp_sgd(client, value[1], 0.0),
        law="gaussian",
        scale=_dp_sgd_noise,
        multiplier=lambda value: value[0],
        unit="noise multiplier",
    ),
    _row(
        "soteria",
        values.number(values.share),
        "the share of the representation's units that is masked, in [0, 1)",
        client=lambda client, value, parts: soteria(
            client, parts.features, parts.path, value
        ),
        simulated=undefended,
        adapt=_masked,
        features=True,
        unit="share of units",
    ),
    _row(
        "mixup",
        values.whole(2),
        _IMAGES,
        client=lambda client, value, parts: mixup(
            client, parts.num_classes, count=value
        ),
        fixed=True,
        # Labels that are known give the mixture away.
        told="which images were mixed, and by which weights",
        unit="images",
    ),
    _row(
        "instahide",
        values.whole(2),
        _IMAGES,
        client=lambda client, value, parts: instahide(
            client, parts.num_classes, count=value
        ),
        simulated=undefended,
        fixed=True,
        unit="images",
    ),
    _row(
        "ats",
        values.policy,
        "transformations, e.g. 3-1-7",
        client=lambda client, value, _: ats(client, value),
        fixed=True,
        # They are few: all can be tried.
        told="which transformations every image went through",
    ),
    _row(
        "precode",
        values.whole(1),
        "the units of the bottleneck, e.g. 256",
        network=rebuilt.bottleneck,
        features=True,
        fixed=True,
        unit="units",
    ),
    _row(
        "dropout",
        values.number(values.share),
        "the share left out, in [0, 1)",
        network=rebuilt.mask,
        features=True,
        fixed=True,
        unit="share left out",
    ),
)
PROTECTIONS = {row.protection.name: row for row in _ROWS}
