"""`--defense=NAME:VALUE`: from text to a defense, and to its adaptive attack."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

from experiments.settings.defense_kinds import KINDS, Kind, Parts, undefended
from invertjax.base import Client, Distance
from invertjax.cli.near import near


class Spec(NamedTuple):
    """One parsed `--defense`. value: a number (it may be traced), a tuple of them, a
    text, or None."""

    name: str
    value: Any

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def strength(self) -> float | None:
        """The first number of the value, None if there is none."""
        first = self.value[0] if isinstance(self.value, tuple) else self.value
        return None if isinstance(first, str) or first is None else float(first)


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
    found = KINDS[name].read(value)
    if found is None:
        raise ValueError(
            f"--defense={text}: expected {name}:VALUE, {KINDS[name].expected}."
        )
    return Spec(name, found)


def specs(defense: Iterable[str | Spec]) -> list[Spec]:
    """Those of `Config.defense`, whose numbers may have been put in already."""
    return [parse(item) if isinstance(item, str) else item for item in defense]


def of_network(defense: Iterable[str]) -> tuple[str, ...]:
    """Those that change the network: whoever has the model knows of them."""
    return tuple(text for text in defense if parse(text).kind.network)


def chained(specs: list[Spec]) -> Callable:
    """Those that change the update, as `key -> optax.GradientTransformation`."""
    updates = [(spec.kind.update, spec.value) for spec in specs if spec.kind.update]

    def defense(key):
        links = [
            update(jax.random.fold_in(key, i), value)
            for i, (update, value) in enumerate(updates)
        ]
        return optax.chain(*links) if links else optax.identity()

    return defense


def wrapped(client: Client, specs: list[Spec], parts: Parts) -> Client:
    """The client with those that change how it computes its gradient."""
    for spec in specs:
        if spec.kind.client:
            client = spec.kind.client(client, spec.value, parts)
    return client


def simulated(client: Client, specs: list[Spec], parts: Parts) -> Client:
    """`wrapped` as an attacker who knows the defenses simulates it."""
    for spec in specs:
        make = spec.kind.simulated or spec.kind.client
        if make:
            client = make(client, spec.value, parts)
    return client


def is_adaptable(spec: Spec) -> bool:
    """Whether there is a form of the attack that makes use of knowing this defense."""
    kind = spec.kind
    simulated = kind.client and kind.simulated is not undefended
    return bool(kind.adapt or kind.network or simulated)


def are_told(specs: list[Spec]) -> bool:
    """Whether an attacker who knows of them is told what the client drew."""
    return any(spec.kind.told for spec in specs)


def noise_kind(specs: list[Spec]) -> str | None:
    """The law of the noise that is the only defense, None if there is none."""
    if len(specs) != 1:
        return None
    laws = {"gaussian": "gaussian", "laplace": "laplace", "dp_sgd": "gaussian"}
    return laws.get(specs[0].name)


def noise_scale(specs: list[Spec], config: Any) -> Any:
    """Standard deviation, or scale, of that noise in the update that is shared."""
    (spec,) = specs
    if spec.name != "dp_sgd":
        return spec.value
    multiplier, max_norm = spec.value[0], spec.value[1]
    batch = config.local_batch if config.local_steps else config.batch_size
    each = multiplier * max_norm / batch
    if not config.local_steps:
        return each
    # Of several steps' noise: how it changes later gradients is left out.
    return config.local_lr * config.local_steps**0.5 * each


def noise(specs: list[Spec]) -> Any:
    """Standard deviation of the Gaussian noise that is the only defense, else 0."""
    alone = len(specs) == 1 and specs[0].name == "gaussian"
    return specs[0].value if alone else 0.0


def adapted(distance: Distance, specs: list[Spec]) -> Distance:
    """The distance of an attacker who knows the defenses, as far as there is one."""
    for spec in reversed(specs):  # the attacker sees what the last one has left
        adapt = spec.kind.adapt
        distance = adapt(distance, spec.value) if adapt else distance
    return distance
