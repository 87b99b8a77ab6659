"""What of a run is only a number: an array in the compiled program, not part of it.

Runs that differ in nothing else share one program; see `experiments.sweep`.
"""

import dataclasses

from experiments.settings.attack import NUMBERS
from experiments.settings.clients import Clients
from experiments.settings.settings import Settings, replaced
from invertjax.auditing.attackers import ATTACKERS
from invertjax.defenses import protection


def without_numbers(settings: Settings) -> Settings:
    """Returns the settings with their numbers set to one value: they are equal for runs
    whose clients and attacks share their programs."""
    row = ATTACKERS[settings.attack.attack]
    numbers = {
        NUMBERS[name]: getattr(settings.attack, name)
        for name in NUMBERS
        if NUMBERS[name] in row.numbers
    }
    _, arrays = row.split(numbers)
    # Not 0, which may be part of a program (`Attacker.switches`).
    same = {name: 1 for name, number in NUMBERS.items() if number in arrays}
    clients = clients_without_numbers(settings.clients)
    return replaced(settings, **same, seed=0)._replace(clients=clients)


def clients_without_numbers(clients: Clients) -> Clients:
    """Returns clients with their numbers set to one value: they are equal for all that
    share their programs."""
    defense = tuple(map(_without_number, clients.defense))
    local_lr = None if clients.local_lr is None else 0
    return dataclasses.replace(
        clients, defense=defense, local_lr=local_lr, local_epochs=None
    )


def as_attacked(settings: Settings) -> Settings:
    """Returns the settings that the attack depends on: the client as the attacker takes
    it, and labels that he has, however he came by them."""
    attack, clients = settings.attack, settings.clients
    same: dict = {"seed": 0}
    if attack.labels == "inferred":
        same |= {"labels": "known"}
    if clients.defense and not attack.defense_known:
        same |= {"defense": protection.of_network(clients.defense)}
        same |= {"defense_known": None}
    if clients.local_steps and not attack.local_known:
        local = (
            "local_epochs",
            "local_batch",
            "local_lr",
            "local_shuffle",
            "local_known",
        )
        same |= {"local_steps": 0, **dict.fromkeys(local)}
    return replaced(settings, **same)


def _without_number(one: protection.Protection) -> protection.Protection:
    return one._replace(value=None if one.is_number else one.value, label=one.name)
