"""What clients that train with DP-SGD (`--defense=dp_sgd:Z`) have spent: epsilon.

For every example of a client, whichever rounds it takes part in, against a server that
sees all of its updates: Abadi et al. (2016), on batches of fixed size that are drawn
without replacement (`federated.rows_of`), when one example is replaced.
"""

import math
from collections.abc import Sequence

import numpy as np

from experiments.settings.clients import Clients
from experiments.settings.run import Run
from invertjax import federated
from invertjax.defenses import Protection, accounting

DELTA = 1e-5


def check(clients: Clients, partition: Sequence[np.ndarray]) -> None:
    """Refuses DP-SGD where its guarantee would not hold, or cannot be computed.

    Raises:
      ValueError: naming the flag and what is right.
    """
    private = _private(clients)
    if private is None:
        return
    named = f"--defense={private}"
    others = [one for one in clients.defense if one.client or one.multiplier]
    others.remove(private)
    if others:
        raise ValueError(
            f"--defense={private.name} does not go with --defense={others[0].name} "
            "here: there is no account of both; expected one of them."
        )
    if clients.local_shuffle:
        raise ValueError(
            f"--local_shuffle does not go with {named}: shuffled batches may hold a "
            "row twice, which the account does not cover; expected --nolocal_shuffle."
        )
    least, size = _least(partition), _local_batch(clients)
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
    clients: Clients,
    run: Run,
    partition: Sequence[np.ndarray],
    participants: int,
    rounds: int,
) -> dict[str, float | None]:
    """Returns `{"epsilon": e, "delta": DELTA}` after so many rounds; {} without DP-SGD.

    An upper bound for every client: as many rounds as the client that took part most
    often, and as few examples as the one that has fewest. None: no bound.
    """
    private = _private(clients)
    if private is None or private.multiplier is None:
        return {}
    sizes = [len(rows) for rows in partition]
    taken = np.zeros(len(sizes), int)
    for number in range(rounds):
        taken[federated.clients_of(number, sizes, participants, run.seed)] += 1
    found = accounting.epsilon(
        private.multiplier(private.value),
        steps=int(taken.max()) * max(clients.local_steps, 1),
        delta=DELTA,
        batch_size=_local_batch(clients),
        examples=_least(partition),
    )
    return {"epsilon": found if math.isfinite(found) else None, "delta": DELTA}


def _private(clients: Clients) -> Protection | None:
    """Returns the defense whose noise an accountant knows, None if there is none."""
    return next((one for one in clients.defense if one.multiplier), None)


def _local_batch(clients: Clients) -> int:
    return clients.batch_size // max(clients.local_steps, 1)


def _least(partition: Sequence[np.ndarray]) -> int:
    return min(len(rows) for rows in partition if len(rows))
