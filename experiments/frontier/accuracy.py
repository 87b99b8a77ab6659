"""What defenses cost: the accuracy of federations that are trained with them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from experiments.data import Dataset
from experiments.federate import epsilon, training
from experiments.settings import defense_flags, traced
from experiments.settings.config import Config
from experiments.settings.federation import Federation
from experiments.sweep import programs
from experiments.sweep import table as table_
from invertjax import federated

CHUNKS = 20  # of a training, between which it can be interrupted


def trained(cell: Config) -> Config:
    """A setting of an attack as one of training: what the two have in common.

    All that the attacker does or knows is set to one value, so that settings are equal
    that train alike.
    """
    return dataclasses.replace(
        cell,
        attack="inverting_gradients",
        steps=1,
        restarts=1,
        targets=1,
        stop="never",
        attack_lr=0.0,
        total_variation=0.0,
        labels="known",
        networks="shared",
        train_steps=0,
        train_lr=None,
        defense_known=False if cell.defense else None,
        null_control=False,
    )


def plan(cells: list[Config]) -> list[list[Config]]:
    """The trainings that the settings of attacks need, in order of appearance: those
    together whose clients differ in numbers only, one compiled program."""
    return programs.by_client(list(dict.fromkeys(map(trained, cells))))


def adaptive(cell: Config) -> list[Config]:
    """The settings of attackers who know of the defense, as far as that helps them:
    the posterior where the law of the noise is known, else the same attack adapted."""
    specs = defense_flags.specs(cell.defense)
    known = dataclasses.replace(cell, defense_known=True)
    if defense_flags.noise_kind(specs):
        return [dataclasses.replace(known, attack="posterior", total_variation=None)]
    return [known] if any(map(defense_flags.is_adaptable, specs)) else []


def accuracies(
    cells: list[Config],
    federation: Federation,
    load: Callable[[Config, str], Dataset],
    over: Callable[[Iterable], Iterable],
) -> list[dict[str, Any]]:
    """Trains a federation in every setting of a kind, in one compiled program.

    Args:
      cells: one of `plan`.
      federation: who takes part.
      load: as `sources.load`.
      over: goes through the rounds, portion by portion.

    Returns:
      A row a setting, by its name (`parts.name_of`): accuracy in [0, 1] on held-out
      images, updates dropped for not being finite, epsilon where there is one.

    Raises:
      ValueError: where the defense does not fit the model or the data.
    """
    ready = [training.prepare(cell, federation, load) for cell in cells]
    first, data = ready[0], training.dataset(ready[0])
    given = _stacked([traced.of(cell) for cell in cells])
    every = _over_settings()
    accuracy = jax.jit(lambda params: every(training.tester(first), params))

    @jax.jit
    def start(given, params):
        def one(now):
            found, params = now
            return training.start(first, found, params)

        return every(one, (given, params))

    @jax.jit
    def advance(given, states, plans, data):
        def one(now):
            found, state, plan = now
            made, key = training.make_round(first, found), training.key(first, found)
            return federated.scan(made, state, data, plan, key)

        return every(one, (given, states, plans))

    states = start(given, _stacked([one.victim.params for one in ready]))
    dropped = np.zeros(len(ready), int)
    for rounds in over(_chunks(federation.rounds)):
        plans = _stacked([one.plan(rounds) for one in ready])
        states, logs = advance(given, states, plans, data)
        dropped += np.asarray(logs.dropped).sum(axis=1)
    rows = zip(ready, np.asarray(accuracy(states.params)), dropped, strict=True)
    return [_row(one, float(hits), int(lost)) for one, hits, lost in rows]


def _over_settings() -> Callable:
    """`(function, arguments) -> results`: on CPUs one after the other, which they do
    faster, elsewhere side by side."""
    if jax.default_backend() == "cpu":
        return jax.lax.map
    return lambda function, arguments: jax.vmap(function)(arguments)


def _row(ready, accuracy, dropped):
    plan = ready.federation
    spent = epsilon.epsilon(
        ready.settings, ready.partition, plan.participants, plan.rounds
    )
    return {
        "training": table_.name_of(ready.settings),
        "accuracy": accuracy,
        "dropped": dropped,
        "epsilon": spent.get("epsilon"),
        "delta": spent.get("delta"),
    }


def _chunks(rounds):
    """Equal portions, about `CHUNKS` of them: programs are of one length."""
    size = max(d for d in range(1, rounds // CHUNKS + 2) if rounds % d == 0)
    return [range(first, first + size) for first in range(0, rounds, size)]


def _stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
