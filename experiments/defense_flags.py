"""`--defense=NAME:VALUE`: from text to a defense, and to its adaptive attack."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

from experiments.near import near
from invertjax import defenses, distances
from invertjax.base import Distance


class Kind(NamedTuple):
    """A defense that the command line offers.

    build: `(key, value) -> optax.GradientTransformation`.
    accepts: whether a value is in range; `expected` says the range in words.
    adapt: `(distance, value) -> distance` of an attacker who knows it; None where there
      is no such form.
    """

    build: Callable
    accepts: Callable[[float], bool]
    expected: str
    adapt: Callable | None = None


KINDS = {
    "clip": Kind(
        lambda key, value: defenses.clip(value),
        lambda value: 0 < value < float("inf"),
        "a positive global norm",
        adapt=lambda distance, value: _clipped(distance, value),
    ),
    "gaussian": Kind(
        defenses.gaussian_noise,
        lambda value: 0 <= value < float("inf"),
        "a standard deviation >= 0",
    ),
    "laplace": Kind(
        defenses.laplace_noise,
        lambda value: 0 <= value < float("inf"),
        "a scale >= 0",
    ),
    "prune": Kind(
        lambda key, value: defenses.prune(value),
        lambda value: 0 <= value < 1,
        "the share set to zero, in [0, 1)",
        adapt=lambda distance, value: distances.masked(distance),
    ),
    "quantise": Kind(
        lambda key, value: defenses.quantise(value),
        lambda value: value.is_integer() and 2 <= value <= 32,
        "a whole number of bits, 2 to 32",
    ),
    "sign": Kind(lambda key, value: defenses.sign(), lambda value: False, "no value"),
}


class Spec(NamedTuple):
    """One parsed `--defense`; the value may be traced."""

    name: str
    value: Any


def parse(text: str) -> Spec:
    """`NAME:VALUE` (or `sign`) to a `Spec`.

    Raises:
      ValueError: naming the flag, its value and what is right.
    """
    name, _, value = text.partition(":")
    if name not in KINDS:
        raise ValueError(
            f"--defense={text} is unknown: expected one of {', '.join(KINDS)}"
            f"{near(name, KINDS)}"
        )
    if name == "sign":
        if text != name:
            raise ValueError(f"--defense={text}: expected sign without a value.")
        return Spec(name, None)
    kind = KINDS[name]
    try:
        number = float(value)
    except ValueError:
        number = None
    if number is None or not kind.accepts(number):
        raise ValueError(f"--defense={text}: expected {name}:VALUE, {kind.expected}.")
    return Spec(name, number)


def specs(defense: Iterable[str | Spec]) -> list[Spec]:
    """Those of `Config.defense`, whose numbers may have been put in already."""
    return [parse(item) if isinstance(item, str) else item for item in defense]


def chained(specs: list[Spec]) -> Callable:
    """The defenses in order, as `key -> optax.GradientTransformation`."""

    def defense(key):
        links = [
            KINDS[spec.name].build(jax.random.fold_in(key, i), spec.value)
            for i, spec in enumerate(specs)
        ]
        return optax.chain(*links) if links else optax.identity()

    return defense


def is_adaptable(spec: Spec) -> bool:
    """Whether there is a form of the attack that makes use of knowing this defense."""
    return KINDS[spec.name].adapt is not None


def noise(specs: list[Spec]) -> Any:
    """Standard deviation of the Gaussian noise that is the only defense, else 0."""
    alone = len(specs) == 1 and specs[0].name == "gaussian"
    return specs[0].value if alone else 0.0


def adapted(distance: Distance, specs: list[Spec]) -> Distance:
    """The distance of an attacker who knows the defenses, as far as there is one."""
    for spec in reversed(specs):  # the attacker sees what the last one has left
        adapt = KINDS[spec.name].adapt
        distance = adapt(distance, spec.value) if adapt else distance
    return distance


def _clipped(distance, max_norm):
    """The distance once the guess's update is clipped as well."""
    clip = defenses.clip(max_norm)

    def residual(guess, observed):
        guess, _ = clip.update(guess, clip.init(guess))
        return distance.residual(guess, observed)

    return Distance(residual, distance.reduce)
