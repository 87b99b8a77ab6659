"""Who holds which examples. NumPy, on the host.

A partition is a list with one array of row numbers for each client: disjoint, together
all rows, ascending, and a function of the seed alone. A client may hold no rows.
"""

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 1000  # before `dirichlet` gives up on `least`

Partition = list[np.ndarray]


def iid(labels: ArrayLike, clients: int, seed: int) -> Partition:
    """Deals all examples out at random; sizes differ by at most one.

    McMahan et al. (2017), section 3. Clients beyond the number of examples get none.

    Args:
      labels: `[n]`; only n matters.
      clients: >= 1.
      seed: >= 0.

    Raises:
      ValueError: on an argument out of range.
    """
    labels = _checked(labels, clients)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [np.sort(rows) for rows in np.array_split(order, clients)]


def by_class(
    labels: ArrayLike, clients: int, classes_per_client: int, seed: int
) -> Partition:
    """Deals out shards of examples sorted by label, so that clients hold few classes.

    The examples, sorted by label and at random within one, are cut into
    `clients * classes_per_client` shards whose sizes differ by at most one; every
    client gets `classes_per_client` of them at random. McMahan et al. (2017), section
    3: 100 clients with two shards each. A shard across a border holds several classes,
    and two shards of a client may be of one: where classes are equally large and
    shards divide them, `classes_per_client` is the most.

    Args:
      labels: `[n]`, sortable.
      clients: >= 1.
      classes_per_client: shards a client, >= 1.
      seed: >= 0.

    Raises:
      ValueError: on an argument out of range.
    """
    labels = _checked(labels, clients)
    if classes_per_client < 1:
        raise ValueError(f"Expected classes_per_client={classes_per_client} >= 1.")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(order, clients * classes_per_client)
    dealt = rng.permutation(len(shards)).reshape(clients, classes_per_client)
    return [np.sort(np.concatenate([shards[i] for i in hand])) for hand in dealt]


def dirichlet(
    labels: ArrayLike, clients: int, concentration: float, seed: int, least: int = 0
) -> Partition:
    """Shares out every class in proportions drawn from a symmetric Dirichlet.

    Yurochkin et al. (2019), "Bayesian Nonparametric Federated Learning", section 4:
    for every class, p ~ Dir(concentration) over the clients, and client j gets the
    share p_j of its examples. Sizes differ, and clients may come out with none. Hsu et
    al. (2019), section 3, draw proportions of classes for every client instead, of
    equal sizes: the same concentration is not the same skew.

    Args:
      labels: `[n]`.
      clients: >= 1.
      concentration: > 0. Small: a class goes to few clients; large: nearly `iid`.
        Studies take .1 to 1.
      seed: >= 0.
      least: examples that every client has at least; the partition is drawn again
        until it is so (Li et al. 2022, "NIID-Bench", whose code takes 10).

    Raises:
      ValueError: on an argument out of range; if no draw gave all clients `least`.
    """
    labels = _checked(labels, clients)
    if not 0 < concentration < np.inf:
        raise ValueError(f"Expected concentration={concentration} > 0, and finite.")
    if not 0 <= least * clients <= len(labels):
        raise ValueError(
            f"Expected least={least} >= 0, and at most {len(labels) // clients}: "
            f"there are {len(labels)} examples for clients={clients}."
        )
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        partition = _proportional(rng, labels, clients, concentration)
        if min(map(len, partition)) >= least:
            return partition
    raise ValueError(
        f"Expected least={least} examples a client: {DRAWS} draws with concentration="
        f"{concentration} gave some client fewer. Lower least, or raise concentration."
    )


def _proportional(
    rng: np.random.Generator, labels: np.ndarray, clients: int, concentration: float
) -> Partition:
    held = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, concentration))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for mine, part in zip(held, np.split(rows, cuts), strict=True):
            mine.append(part)
    return [np.sort(np.concatenate(parts)) for parts in held]


def _checked(labels: ArrayLike, clients: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"Expected labels of shape {labels.shape} to be [n], n >= 1.")
    if clients < 1:
        raise ValueError(f"Expected clients={clients} >= 1.")
    return labels
