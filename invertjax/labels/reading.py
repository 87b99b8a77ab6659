"""The labels that an update gives away, by the method that its batch size allows."""

import jax

from invertjax import layers
from invertjax.base import Batch, Client, Key, Params, Update
from invertjax.labels.counts import from_counts
from invertjax.labels.idlg import idlg
from invertjax.labels.probing import recover


def read(
    key: Key,
    client: Client,
    params: Params,
    update: Update,
    *,
    batch_size: int,
    num_classes: int,
    probe_batches: Batch | None = None,
    learning_rate: jax.typing.ArrayLike = 1.0,
    steps: int = 1,
) -> jax.Array:
    """Reads the labels of the batch behind an update off its last dense layer.

    A single label is exact (`idlg`) and needs no probes; of a larger batch `recover`
    counts how often each label occurs.

    Args:
      key: consumed.
      client: shares a gradient, of the same loss.
      params: before the update.
      update: a gradient, or `params_before - params_after` of plain SGD.
      batch_size: b, images behind the update.
      num_classes: K.
      probe_batches: see `recover`; None for a single image.
      learning_rate, steps: of local SGD; 1 and 1 for a gradient.

    Returns:
      `[b]` integers in [0, K), in ascending order.

    Raises:
      ValueError: if the last layer is not found, or does not show what is needed.
    """
    if batch_size == 1:
        last = layers.last(update, num_classes)
        return idlg(last.weight, last.bias)[None]
    counts = recover(
        key,
        client,
        params,
        update,
        batch_size=batch_size,
        num_classes=num_classes,
        probe_batches=probe_batches,
        learning_rate=learning_rate,
        steps=steps,
    )
    return from_counts(counts, batch_size)
