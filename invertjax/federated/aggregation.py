"""Aggregation makes one update of many."""

import jax
import jax.numpy as jnp

from invertjax.base import Update
from invertjax.federated.base import Seen


def mean(seen: Seen) -> Update:
    """Returns the weighted mean, sum_i w_i u_i / sum_i w_i.

    FedAvg: McMahan et al. (2017), Algorithm 1, with w_i the examples of client i; the
    sum of the weights is that of the clients that took part. Rows of weight zero do not
    count, whatever they hold; if all are zero, so is the mean. Summed in float32 at
    least, and returned in the dtype of the updates.
    """
    weights = jnp.asarray(seen.weights, jnp.float32)
    total = jnp.sum(weights)
    total = jnp.where(total > 0, total, 1)

    def one(leaf: jax.Array) -> jax.Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        # Not a product with zero, since 0 NaN is NaN.
        weighted = jax.vmap(lambda w, u: jnp.where(w > 0, w * u, 0))(weights, wide)
        return (jnp.sum(weighted, axis=0) / total).astype(leaf.dtype)

    return jax.tree.map(one, seen.updates)
