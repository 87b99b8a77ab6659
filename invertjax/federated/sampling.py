"""Who takes part in which round, and with which examples. NumPy, on the host.

All draws are functions of the seed and the round, so that a resumed run draws what an
uninterrupted one does.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Streams of one seed. They start at 1, as NumPy takes [seed, 0, 0] for [seed].
_CLIENTS, _ROWS = 1, 2


class Plan(NamedTuple):
    """What R rounds of m clients draw, as `rounds.scan` takes it.

    ids: `[R, m]` int32, the clients of each round.
    rows: `[R, m, k]` int32, the examples of each, for all its local steps.
    weights: `[R, m]` float32, the number of examples that each holds.
    """

    ids: np.ndarray
    rows: np.ndarray
    weights: np.ndarray


def plan(
    rounds: Iterable[int],
    partition: Sequence[ArrayLike],
    *,
    count: int,
    steps: int,
    batch_size: int,
    seed: int,
) -> Plan:
    """Draws `clients_of` and `rows_of` for several rounds, e.g. `range(start, stop)`.

    Raises:
      ValueError: as those do.
    """
    sizes = np.array([len(rows) for rows in map(np.asarray, partition)])
    rounds = list(rounds)
    ids = [clients_of(number, sizes, count, seed) for number in rounds]
    rows = [
        rows_of(number, partition, chosen, steps, batch_size, seed)
        for number, chosen in zip(rounds, ids, strict=True)
    ]
    ids = np.reshape(ids, (-1, count)).astype(np.int32)
    rows = np.reshape(rows, (-1, count, steps * batch_size)).astype(np.int32)
    return Plan(ids, rows, sizes[ids].astype(np.float32))


def clients_of(number: int, sizes: ArrayLike, count: int, seed: int) -> np.ndarray:
    """Draws `[count]` distinct clients, uniformly from those that have data.

    A fixed number is sampled without replacement (McMahan et al. 2017, Algorithm 1), in
    random order, so that it is random, too, which part of a cast a client plays.

    Args:
      number: of the round, >= 0.
      sizes: `[population]`, examples of each client.
      count: >= 1.
      seed: >= 0.

    Raises:
      ValueError: if `count` is not in 1 ... the number of clients that have data.
    """
    able = np.flatnonzero(np.asarray(sizes) > 0)
    if not 1 <= count <= len(able):
        raise ValueError(
            f"Expected count={count} >= 1, and at most {len(able)}: "
            f"so many clients have data."
        )
    rng = np.random.default_rng([seed, number, _CLIENTS])
    return rng.choice(able, count, replace=False)


def rows_of(
    number: int,
    partition: Sequence[ArrayLike],
    ids: ArrayLike,
    steps: int,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """Draws what each client trains on in a round: rows `[m, steps * batch_size]`.

    Entries `i*b ... i*b + b - 1` are those of local step i: b of the client's examples
    without replacement, independently of the other steps, as accountants of sampled
    batches of fixed size assume (Balle et al. 2018, "subsampling without
    replacement"), and not as passes over the data. A client with fewer examples takes
    all of them, in one random order a step, over and over up to b: nothing is sampled
    there, and privacy not amplified. What a client draws does not depend on who else
    takes part.

    Args:
      number: of the round, >= 0.
      partition: the row numbers of every client.
      ids: `[m]`, clients that have data.
      steps: local steps, >= 1.
      batch_size: b, rows a step, >= 1.
      seed: >= 0.

    Raises:
      ValueError: on an argument out of range, or a client without data.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"Expected steps={steps} and batch_size={batch_size} >= 1.")

    def one(client: int) -> np.ndarray:
        held = np.asarray(partition[client])
        if not len(held):
            raise ValueError(f"Expected client {client} of ids={ids} to have data.")
        rng = np.random.default_rng([seed, number, _ROWS, client])
        size = min(batch_size, len(held))
        draws = [rng.choice(held, size, replace=False) for _ in range(steps)]
        return np.concatenate([np.resize(draw, batch_size) for draw in draws])

    return np.stack([one(int(client)) for client in np.asarray(ids)])
