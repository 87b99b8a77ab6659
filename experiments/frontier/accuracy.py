"""What defenses cost: the accuracy of federations that are trained with them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import Dataset
from experiments.federate import epsilon, training
from experiments.federate.training import Training
from experiments.settings import federation as federation_
from experiments.settings import settings, traced
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.federation import Federation
from experiments.settings.run import Run
from experiments.settings.settings import Settings
from experiments.settings.victim import Victim
from invertjax import federated
from invertjax.driver import Cache

CHUNKS = 20  # of a training, between which it can be interrupted


class Setup(NamedTuple):
    """What a federation trains with: all that is not about who takes part."""

    data: Data
    victim: Victim
    clients: Clients
    run: Run


def setup_of(cell: Settings) -> Setup:
    """Returns the training that goes with an attack: what the two have in common.

    It is equal for all attackers, and for all networks that were trained before they
    were attacked.
    """
    data = dataclasses.replace(cell.data, targets=1)  # nobody is attacked here
    victim = dataclasses.replace(
        cell.victim, networks="shared", train_steps=0, train_lr=None
    )
    return Setup(data, victim, cell.clients, cell.run)


def name_of(setup: Setup, federation: Federation) -> str:
    """Returns a training's name: 16 characters that differ where any setting does."""
    kept = {"federation": federation_.flat(federation), **settings.flat(setup)}
    return settings.digest(kept, 16)


def plan(cells: Iterable[Settings]) -> list[list[Setup]]:
    """Returns the trainings that attacks need, in order of appearance: those together
    whose clients differ in numbers only, one compiled program."""
    found: dict[Setup, list[Setup]] = {}
    for setup in dict.fromkeys(map(setup_of, cells)):
        found.setdefault(_static(setup), []).append(setup)
    return list(found.values())


def _static(setup: Setup) -> Setup:
    return setup._replace(
        clients=traced.clients_without_numbers(setup.clients),
        run=dataclasses.replace(setup.run, seed=0),
    )


def accuracies(
    setups: list[Setup],
    federation: Federation,
    load: Callable[[Data, str], Dataset],
    over: Callable[[Iterable], Iterable],
    cache: Cache,
) -> list[dict[str, Any]]:
    """Trains a federation with every setup of a kind, in one compiled program.

    Args:
      setups: one list of `plan`.
      federation: who takes part.
      load: reads the split that a flag names.
      over: goes through the rounds, portion by portion.
      cache: of networks and losses.

    Returns:
      A row a setup, by its name: accuracy in [0, 1] on held-out images, updates dropped
      for not being finite, epsilon where there is one.

    Raises:
      ValueError: where the defense does not fit the model or the data.
    """
    ready = [
        training.prepare(*setup, federation, load=load, cache=cache) for setup in setups
    ]
    first, data = ready[0], training.dataset(ready[0])
    numbers = _stacked(list(map(training.numbers, ready)))
    every = _over_settings()
    accuracy = jax.jit(lambda params: every(training.tester(first), params))
    start, advance = _rounds(first, every)
    states = start(numbers, _stacked([one.params for one in ready]))
    dropped = np.zeros(len(ready), int)
    for rounds in over(_chunks(federation.rounds)):
        plans = _stacked([one.plan(rounds) for one in ready])
        states, logs = advance(numbers, states, plans, data)
        dropped += np.asarray(logs.dropped).sum(axis=1)
    hits = np.asarray(accuracy(states.params))
    return [
        {"training": name_of(setup, federation), **_row(one, float(hit), int(lost))}
        for setup, one, hit, lost in zip(setups, ready, hits, dropped, strict=True)
    ]


def _rounds(first: Training, every: Callable) -> tuple[Callable, Callable]:
    """Returns the start of trainings of one kind, and a portion of their rounds, both
    compiled; their numbers, params and states have an axis over the trainings."""

    @jax.jit
    def start(numbers: Any, params: Any) -> Any:
        def one(given: tuple) -> Any:
            return training.start(first, *given)

        return every(one, (numbers, params))

    @jax.jit
    def advance(numbers: Any, states: Any, plans: Any, data: Any) -> Any:
        def one(given: tuple) -> Any:
            found, state, plan = given
            made, key = training.make_round(first, found), training.key(found)
            return federated.scan(key, made, state, data, plan)

        return every(one, (numbers, states, plans))

    return start, advance


def _over_settings() -> Callable:
    """Returns `(function, arguments) -> results`: on CPUs one after the other, which
    they do faster, elsewhere side by side."""
    if jax.default_backend() == "cpu":
        return jax.lax.map
    return lambda function, arguments: jax.vmap(function)(arguments)


def _row(ready: Training, accuracy: float, dropped: int) -> dict[str, Any]:
    plan = ready.federation
    spent = epsilon.epsilon(
        ready.clients, ready.run, ready.partition, plan, plan.rounds
    )
    return {
        "accuracy": accuracy,
        "dropped": dropped,
        "epsilon": spent.get("epsilon"),
        "delta": spent.get("delta"),
    }


def _chunks(rounds: int) -> list[range]:
    """Returns equal portions, about `CHUNKS` of them: programs are of one length."""
    size = max(d for d in range(1, rounds // CHUNKS + 2) if rounds % d == 0)
    return [range(first, first + size) for first in range(0, rounds, size)]


def _stacked(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
