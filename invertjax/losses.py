"""Losses that take labels as integers or as probabilities."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invertjax.base import Batch, Loss, Params


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the mean softmax cross-entropy, -1/B sum_i sum_c y_ic log softmax(z_i)_c.

    Args:
      logits: `[B, K]`.
      labels: `[B]` integers in [0, K), or `[B, K]` probabilities. Integers out of
        range have no class: that row's loss is 0.
      label_smoothing: s in [0, 1]: y becomes (1 - s) y + s / K (Szegedy et al. 2016,
        Section 7).

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
    if label_smoothing:
        labels = optax.smooth_labels(labels, label_smoothing)
    return optax.softmax_cross_entropy(logits, labels).mean()


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean of -y log s(z) - (1 - y) log(1 - s(z)), s the logistic function.

    For binary and for multi-label classification: labels that may hold together.

    Args:
      logits: `[B]` or `[B, K]`, or `[B, 1]` beside labels `[B]`.
      labels: of the same shape, in [0, 1].

    Raises:
      ValueError: if shapes differ.
    """
    logits, labels = _of_one_shape(logits, labels)
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean squared difference, for regression.

    Args:
      outputs: `[B]` or `[B, K]`, or `[B, 1]` beside targets `[B]`.
      targets: of the same shape.

    Raises:
      ValueError: if shapes differ.
    """
    outputs, targets = _of_one_shape(outputs, targets)
    return jnp.mean((outputs - targets) ** 2)


def _of_one_shape(outputs: jax.Array, targets: jax.Array) -> tuple[Any, Any]:
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.shape == (*targets.shape, 1):
        outputs = outputs[..., 0]
    if outputs.shape != targets.shape:  # broadcasting would take all pairs
        raise ValueError(
            f"Expected labels of shape {targets.shape} to be {outputs.shape}, one for "
            "each output."
        )
    return outputs, targets.astype(outputs.dtype)


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
