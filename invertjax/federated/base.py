"""The vocabulary of a round: what a client holds, and what the server sees."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from invertjax.base import Batch, Key, Params, Update


class View(NamedTuple):
    """What one client knows in one round.

    params: the model that the server sent.
    previous: the model of the round before; in the first round, `params`.
    data: the client's batch of this round, pytree `[k, ...]`.
    round: `[]` int32, from 0.
    key: the client's own, for this round alone.
    """

    params: Params
    previous: Params
    data: Batch
    round: jax.Array
    key: Key


class Seen(NamedTuple):
    """What a server without secure aggregation sees of one round of m clients.

    params, previous, round: as in `View`.
    updates: pytree like `params` with a leading axis `[m]`, as the clients sent them.
    weights: `[m]`, >= 0, how much each client counts: its number of examples. Zero
      for an update that is not finite.
    key: the server's own, for this round alone.
    """

    params: Params
    previous: Params
    updates: Update
    weights: jax.Array
    round: jax.Array
    key: Key


# What a participant does. `behaviours.honest` makes one of a client.
Behaviour = Callable[[View], Update]

# Returns the update that the server goes on with. Rows of weight zero must not count,
# whatever they hold, NaN included. If there are no other rows, the answer is not used,
# but must have the right shapes.
Aggregator = Callable[[Seen], Update]

# Returns a score for each client, `[m]`: the larger, the more suspect.
Detector = Callable[[Seen], jax.Array]
