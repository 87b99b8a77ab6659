"""What the attacker does, and what he is told."""

import dataclasses
from typing import Any

from invertjax.auditing import attackers
from invertjax.auditing.situations import LABELS
from invertjax.cli import amounts
from invertjax.cli.setting import setting
from invertjax.driver.stopping import RULES

IMAGE = 4.0 * 32 * 32 * 3  # bytes of an image, about
_DATA = ("update", "data, and --update comes without")


def _one_of(names: tuple[str, ...]) -> str:
    return f"one of {', '.join(names)}"


def _with_number(name: str) -> str:
    return " or ".join(attackers.with_number(name))


def _described() -> str:
    """Returns what a user should know of the attacks, in sentences."""
    return " ".join(row.says for row in attackers.ATTACKERS.values() if row.says)


def _defaults(fact: str) -> str:
    """Returns the defaults of "steps" or "labels" in words: the first row's, then the
    others', each with the names that have it."""
    found: dict[Any, list[str]] = {}
    for row in attackers.ATTACKERS.values():
        value = getattr(row, fact)
        value = value[0] if isinstance(value, tuple) else value
        if value is not None:
            found.setdefault(value, []).append(row.name)
    (first, _), *others = found.items()
    return "; ".join([str(first), *(f"{' and '.join(n)} {v}" for v, n in others)])


@dataclasses.dataclass(frozen=True)
class Attack:
    """The attack, its numbers, and the attacker's knowledge."""

    attack: str = setting(
        f"The attack, {_one_of(attackers.NAMES)}. {_described()}",
        default="auto",
        one_of=attackers.NAMES,
    )
    restarts: int = setting(
        "Random starts, of which the attacker keeps the best fit. Default: 1.",
        at_least=1,
        at_most=10**6,
        because=amounts.memory(lambda restarts: IMAGE * restarts),
    )
    steps: int = setting(
        f"Iterations of the attack. Default: {_defaults('steps')}.",
        at_least=1,
        at_most=10**7,
        because=amounts.seconds(1e-3),
    )
    warm_start: str | None = setting(
        f"An attack that the images start from, {_one_of(attackers.WARM_STARTS)}, with "
        "its own defaults; recursive before gauss_newton. Default: noise, or grey.",
        one_of=attackers.WARM_STARTS,
    )
    stop: str = setting(
        f"When a trial ends before that, {_one_of(tuple(RULES))}: the worse half of "
        "the restarts at 1/8, 1/4 and 1/2 of the steps; or once its objective no "
        "longer falls. Default: never.",
        one_of=tuple(RULES),
    )
    labels: str = setting(
        f"How the attacker comes by the labels, {_one_of(LABELS)}: told, read off the "
        "last layer, or optimised with the images. Default: "
        f"{_defaults('labels')}; with --update inferred.",
        one_of=LABELS,
    )
    attack_lr: float = setting(
        f"Learning rate of {_with_number('learning_rate')}.", above=0, number=True
    )
    total_variation: float = setting(
        f"Weight of total variation in {_with_number('total_variation')}.",
        at_least=0,
        number=True,
    )
    local_known: bool = setting(
        "The attacker simulates the local steps; --nolocal_known: takes the update for "
        "one gradient. Default: true.",
        default=True,
        needs="local_steps",
    )
    defense_known: bool = setting(
        "The attacker knows the defense, and adapts where it can.", needs="defense"
    )
    null_control: bool = setting(
        "As a control, also attack the first target's update with its coordinates "
        "shuffled. Default: true.",
        default=True,
        without=_DATA,
        fixed="it is the control of a single run",
    )


# How a row of an attacker calls the number that a setting holds.
NUMBERS = {"attack_lr": "learning_rate", "total_variation": "total_variation"}
