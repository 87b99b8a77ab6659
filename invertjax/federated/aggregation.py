"""Aggregation makes one update of many."""

from invertjax import trees
from invertjax.base import Update
from invertjax.federated.base import Seen


def mean(seen: Seen) -> Update:
    """Returns the weighted mean, sum_i w_i u_i / sum_i w_i.

    FedAvg: McMahan et al. (2017), Algorithm 1, with w_i the examples of client i; the
    sum of the weights is that of the clients that took part. Rows of weight zero do not
    count, whatever they hold; if all are zero, so is the mean. Summed in float32 at
    least, and returned in the dtype of the updates.
    """
    return trees.weighted_mean(seen.updates, seen.weights)
