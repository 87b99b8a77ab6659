"""A client that changes its batch before it computes its update."""

from collections.abc import Callable

from invertjax import clients
from invertjax.base import Batch, Client, Key, Params, Update


@clients.keeps_plain
def transformed(client: Client, transform: Callable[[Batch], Batch]) -> Client:
    """Makes a client that shares `client(params, transform(batch))`.

    What a transform draws is an entry of the batch (`clients.randomised`) that the
    transform reads and leaves out of what it returns, so that two can be nested.

    An adaptive attacker runs this client backwards, and finds the batch before the
    transform. Another one runs `client` backwards, and finds the batch after it.

    Args:
      client: `(params, batch, key) -> update`.
      transform: `batch -> batch`, pure; differentiable, if it is to be run backwards.
    """

    def sharing(params: Params, batch: Batch, key: Key) -> Update:
        return client(params, transform(batch), key)

    return sharing
