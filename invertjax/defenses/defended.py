"""A client whose update goes through a defense."""

from collections.abc import Callable

import jax
import optax

from invertjax import clients
from invertjax.base import Batch, Client, Key, Params, Update

Defense = Callable[[Key], optax.GradientTransformation]


@clients.keeps_plain
def defend(client: Client, defense: Defense) -> Client:
    """Makes a client that shares `defense(client(params, batch))`.

    The defense is built afresh at every call, from a key that the client does not
    see, so that every client and every round draws its own noise. State that a
    defense carries over rounds is therefore not kept.

    An adaptive attacker runs this client backwards, a plain one `client`.

    Args:
      client: `(params, batch, key) -> update`.
      defense: `key -> optax.GradientTransformation`; `lambda key: clip(1.0)` if it
        needs no key.
    """

    def defended(params: Params, batch: Batch, key: Key) -> Update:
        client_key, defense_key = jax.random.split(key)
        update = client(params, batch, client_key)
        transform = defense(defense_key)
        return transform.update(update, transform.init(params), params)[0]

    return defended
