"""What participants do in a round."""

from invertjax.base import Client, Update
from invertjax.federated.base import Behaviour, View


def honest(client: Client) -> Behaviour:
    """Does what the protocol says: shares the client's update on its data.

    Args:
      client: `(params, batch, key) -> update`.
    """

    def behaviour(view: View) -> Update:
        return client(view.params, view.data, view.key)

    return behaviour
