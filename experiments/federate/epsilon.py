"""What clients that train with DP-SGD (`--defense=dp_sgd:Z`) have spent: epsilon.

For every example of a client, whichever rounds it takes part in, against a server that
sees all of its updates: Abadi et al. (2016), on batches of fixed size that are drawn
without replacement (`federated.rows_of`), when one example is replaced.

In a row of metrics.jsonl `epsilon` counts the rounds before this one, which made the
model whose accuracy the row has. Where the round was audited, `epsilon_seen` counts its
own update, too, which the server has just seen and the attack is run on.
"""

import math
from collections.abc import Sequence

import numpy as np

from experiments.settings.clients import Clients
from experiments.settings.federation import Federation
from experiments.settings.run import Run
from invertjax import federated
from invertjax.defenses import Protection, accounting

DELTA = 1e-5  # where nobody says


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
    if clients.local_epochs:
        raise ValueError(
            f"--local_epochs={clients.local_epochs} does not go with {named}: epochs "
            "take the same images again, and the account is of batches that are drawn "
            "anew; expected --local_steps."
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
    federation: Federation,
    rounds: int,
    *,
    audited: bool = False,
) -> dict[str, float | None]:
    """Returns `{"epsilon": e, "delta": d}` after so many rounds; {} without DP-SGD.

    An upper bound for every client: as many rounds as the client that took part most
    often, and as few examples as the one that has fewest. None: no bound.

    Args:
      clients, run, federation: settings.
      partition: the rows of every client.
      rounds: r, of which all updates, rounds 0 to r - 1, are counted.
      audited: also returns `epsilon_seen`, with the updates of round r itself.
    """
    if _private(clients) is None:
        return {}

    def after(rounds: int) -> float | None:
        taken = _taken(run, partition, federation.participants, rounds)
        return _bound(clients, partition, delta_of(federation), taken)

    spent = {"epsilon": after(rounds), "delta": delta_of(federation)}
    return {**spent, "epsilon_seen": after(rounds + 1)} if audited else spent


def delta_of(federation: Federation) -> float:
    """Returns the delta at which epsilon is given."""
    return DELTA if federation.dp_delta is None else federation.dp_delta


def warning(
    clients: Clients, federation: Federation, partition: Sequence[np.ndarray]
) -> str | None:
    """Returns a line where delta is too large to mean anything, else None.

    The account is of one example, so n is the number of examples of all clients: who
    gives one of them away whole, drawn at random, has a delta of 1 / n and epsilon 0.
    """
    count, delta = sum(map(len, partition)), delta_of(federation)
    if _private(clients) is None or delta * count < 1:
        return None
    return (
        f"--dp_delta={delta:g} allows that one of the {count} examples is given away "
        f"whole: expected less than 1 / {count}, e.g. --dp_delta={0.1 / count:.1g}."
    )


def _taken(
    run: Run, partition: Sequence[np.ndarray], participants: int, rounds: int
) -> int:
    """Returns in how many rounds the client was that took part most often."""
    sizes = [len(rows) for rows in partition]
    taken = np.zeros(len(sizes), int)
    for number in range(rounds):
        taken[federated.clients_of(number, sizes, participants, run.seed)] += 1
    return int(taken.max())


def _bound(
    clients: Clients, partition: Sequence[np.ndarray], delta: float, taken: int
) -> float | None:
    """Returns epsilon after so many rounds of one client; None: no bound."""
    private = _private(clients)
    assert private is not None and private.multiplier is not None
    found = accounting.epsilon(
        private.multiplier(private.value),
        steps=taken * max(clients.local_steps, 1),
        delta=delta,
        batch_size=_local_batch(clients),
        examples=_least(partition),
    )
    return found if math.isfinite(found) else None


def _private(clients: Clients) -> Protection | None:
    """Returns the defense whose noise an accountant knows, None if there is none."""
    return next((one for one in clients.defense if one.multiplier), None)


def _local_batch(clients: Clients) -> int:
    return clients.batch_size // max(clients.local_steps, 1)


def _least(partition: Sequence[np.ndarray]) -> int:
    return min(len(rows) for rows in partition if len(rows))
