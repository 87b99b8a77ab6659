"""Losses that take labels as integers or as probabilities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from invertjax.base import Batch, Loss, Params


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean softmax cross-entropy, -1/B sum_i sum_c y_ic log softmax(z_i)_c.

    Args:
      logits: `[B, K]`.
      labels: `[B]` integers in [0, K), or `[B, K]` probabilities. Integers out of
        range have no class: that row's loss is 0.

    Returns:
      `[]`.

    Raises:
      ValueError: if `labels` has neither form.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    if labels.shape != logits.shape:
        raise ValueError(
            f"Expected labels of shape {labels.shape} and type {labels.dtype} to be "
            f"integers {logits.shape[:1]} or probabilities {logits.shape}."
        )
    return optax.softmax_cross_entropy(logits, labels).mean()


def classification(apply: Callable[[Params, jax.Array], jax.Array]) -> Loss:
    """Makes the loss of a classifier on a batch, its `cross_entropy`.

    Args:
      apply: `(params, images [B, H, W, C] in [0, 1]) -> logits [B, K]`.

    Returns:
      `loss_fn(params, batch) -> []`.
    """

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(apply(params, batch["image"]), batch["label"])

    return loss_fn
