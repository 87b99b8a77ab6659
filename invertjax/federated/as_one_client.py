"""Makes one client of all those whose mean a server sees under secure aggregation."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from invertjax import clients, trees
from invertjax.base import Batch, Client, Key, Params, Update


@clients.keeps_plain
def averaged(client: Client, count: int, weights: ArrayLike | None = None) -> Client:
    """Makes a client that shares the mean update of `count` clients.

    Under secure aggregation (Bonawitz et al. 2017) the server learns this mean and
    nothing else; an attack on the aggregate runs this client backwards, and
    reconstructs the batches of all its members. For `clients.gradient` of a mean loss
    it is the gradient on the union of the batches: secure aggregation of FedSGD is a
    larger batch, and no more.

    Args:
      client: `(params, batch, key) -> update`; every member has a key of its own.
      count: members, >= 1, with as many rows each.
      weights: `[count]`, >= 0, not all 0: of the members in the mean, which the server
        knows. Default: all equal.

    Returns:
      `(params, batch, key) -> update`; rows `i*b ... i*b + b - 1` of the batch
      `[count * b, ...]` are those of member i.

    Raises:
      ValueError: on `count` or the shape of `weights`; when called, if the rows cannot
        be shared out evenly.
    """
    if count < 1:
        raise ValueError(f"Expected count={count} >= 1.")
    if weights is not None and jnp.shape(weights) != (count,):
        raise ValueError(
            f"Expected weights of shape {jnp.shape(weights)} to be ({count},)."
        )

    def mean_of_members(params: Params, batch: Batch, key: Key) -> Update:
        rows = jax.tree.leaves(batch)[0].shape[0]
        if rows % count:
            raise ValueError(f"Expected rows={rows} to be a multiple of count={count}.")
        members = jax.tree.map(
            lambda leaf: leaf.reshape(count, rows // count, *leaf.shape[1:]), batch
        )
        keys = jax.random.split(key, count)
        updates = jax.vmap(client, in_axes=(None, 0, 0))(params, members, keys)
        if weights is None:
            mean = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), trees.wide(updates))
            return trees.rounded(mean, updates)
        return trees.weighted_mean(updates, weights)

    return mean_of_members
