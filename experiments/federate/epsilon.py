"""What clients that train with `--defense=dp_sgd:Z` have spent: epsilon, at DELTA.

For every example of a client, whichever rounds it takes part in, against a server that
sees all of its updates: Abadi et al. (2016), on batches of fixed size that are drawn
without replacement (`federated.rows_of`), when one example is replaced.
"""

import math

import numpy as np

from experiments.settings import defense_flags
from experiments.settings.config import Config
from invertjax import federated
from invertjax.defenses import accounting

DELTA = 1e-5


def check(settings: Config, partition: list) -> None:
    """Refuses DP-SGD where its guarantee would not hold, or cannot be computed.

    Raises:
      ValueError: naming the flag and what is right.
    """
    spec = _spec(settings)
    if spec is None:
        return
    named = f"--defense={settings.defense[0]}"
    others = [
        other.name
        for other in defense_flags.specs(settings.defense)
        if other.kind.client and other != spec
    ]
    if others or settings.defense.count(settings.defense[0]) > 1:
        raise ValueError(
            f"--defense=dp_sgd does not go with --defense={(others or ['dp_sgd'])[0]} "
            "here: there is no account of both; expected one of them."
        )
    if settings.local_shuffle:
        raise ValueError(
            f"--local_shuffle does not go with {named}: shuffled batches may hold a "
            "row twice, which the account does not cover; expected --nolocal_shuffle."
        )
    least, size = _least(partition), _local_batch(settings)
    if least < size:
        raise ValueError(
            f"{named}: a client has {least} examples for batches of {size}, so "
            "that rows repeat and the account does not hold; expected as many, by "
            f"fewer --clients or --local_batch (--batch_size) of at most {least}."
        )
    try:
        accounting.epsilon(1.0, steps=0, delta=DELTA, batch_size=1, examples=1)
    except ImportError as error:
        raise ValueError(f"{named}: {error}") from None


def epsilon(
    settings: Config, partition: list, participants: int, rounds: int
) -> dict[str, float | None]:
    """`{"epsilon": e, "delta": DELTA}` after so many rounds; {} without DP-SGD.

    An upper bound for every client: as many rounds as the client that took part most
    often, and as few examples as the one that has fewest. None: no bound.
    """
    spec = _spec(settings)
    if spec is None:
        return {}
    sizes = [len(rows) for rows in partition]
    taken = np.zeros(len(sizes), int)
    for round in range(rounds):
        ids = federated.clients_of(round, sizes, participants, settings.seed)
        taken[ids] += 1
    found = accounting.epsilon(
        spec.value[0],
        steps=int(taken.max()) * max(settings.local_steps, 1),
        delta=DELTA,
        batch_size=_local_batch(settings),
        examples=_least(partition),
    )
    return {"epsilon": found if math.isfinite(found) else None, "delta": DELTA}


def _spec(settings):
    specs = defense_flags.specs(settings.defense)
    return next((spec for spec in specs if spec.name == "dp_sgd"), None)


def _local_batch(settings):
    return settings.batch_size // max(settings.local_steps, 1)


def _least(partition):
    return min(len(rows) for rows in partition if len(rows))
