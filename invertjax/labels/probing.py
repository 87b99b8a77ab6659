"""Label counts of an update, with the mean probabilities read off probe batches."""

import jax
import jax.numpy as jnp

from invertjax import layers
from invertjax.base import Batch, Client, Key, Params, Update
from invertjax.labels.counts import counts, mean_probabilities


def noise_batches(
    key: Key, number: int, batch_size: int, shape: tuple[int, ...], num_classes: int
) -> Batch:
    """Makes probes for a server without public data: noise images, random labels.

    Pixels are .5 + .25 n, clipped to [0, 1], with n of unit variance and an amplitude
    spectrum of 1/f, that of natural images: Field (1987), "Relations between the
    statistics of natural images and the response properties of cortical cells".
    This is enough for an untrained network; a trained one tells noise from images, so
    that public data does better.

    Args:
      key: consumed.
      number: P, of batches.
      batch_size: b, images a batch.
      shape: `(H, W, C)`.
      num_classes: K.

    Returns:
      `{"image": [P, b, H, W, C], "label": [P, b]}`.
    """
    image_key, label_key = jax.random.split(key)
    white = jax.random.normal(image_key, (number, batch_size, *shape))
    vertical, horizontal = jnp.fft.fftfreq(shape[0]), jnp.fft.fftfreq(shape[1])
    frequency = jnp.hypot(vertical[:, None], horizontal[None, :])
    # The mean has no frequency: it is drawn like the lowest frequency there is.
    frequency = jnp.maximum(frequency, 1 / max(shape[:2]))[None, None, :, :, None]
    spectrum = jnp.fft.fft2(white, axes=(2, 3)) / frequency
    noise = jnp.fft.ifft2(spectrum, axes=(2, 3)).real
    labels = jax.random.randint(label_key, (number, batch_size), 0, num_classes)
    return {"image": jnp.clip(0.5 + 0.25 * noise / noise.std(), 0, 1), "label": labels}


def probe(
    key: Key,
    client: Client,
    params: Params,
    probe_batches: Batch,
    *,
    num_classes: int,
    path: str | None = None,
) -> jax.Array:
    """Returns a network's mean p over probe batches, from the client's own gradients.

    Args:
      key: consumed.
      client: shares a gradient (`clients.gradient`).
      params: of the network.
      probe_batches: a batch with one more leading axis, `[P, b, ...]`.
      num_classes: K.
      path: of the last dense layer; default: the one with K outputs.

    Returns:
      `[K]`.
    """

    def one(batch_and_key: tuple[Batch, Key]) -> jax.Array:
        batch, batch_key = batch_and_key
        bias_grad = _last_bias(client(params, batch, batch_key), num_classes, path)
        return mean_probabilities(bias_grad, _label_counts(batch["label"], num_classes))

    number = len(probe_batches["label"])
    return jax.lax.map(one, (probe_batches, jax.random.split(key, number))).mean(0)


def recover(
    key: Key,
    client: Client,
    params: Params,
    update: Update,
    *,
    batch_size: int,
    num_classes: int,
    probe_batches: Batch,
    path: str | None = None,
    learning_rate: jax.typing.ArrayLike = 1.0,
    steps: int = 1,
) -> jax.Array:
    """Returns the label counts of an update: `probe` for mean p, then `counts`.

    After several local steps, mean p is averaged between the params of the first
    step and, as estimated on the line to `params - update`, those of the last. Geng
    et al. (2021) interpolate so; with Dimitrov et al. (2022), "Data Leakage in
    Federated Averaging", the average is over all steps, which is the same where p
    changes linearly.

    Args:
      key: consumed.
      client: shares a gradient; `clients.gradient` of the same loss also when the
        update comes from `clients.local_sgd`.
      params: before the update.
      update: a gradient, or `params_before - params_after` of plain SGD whose steps
        see equally many images.
      batch_size: b, the images behind the update; after whole epochs, count an image
        once.
      num_classes: K.
      probe_batches: `[P, b, ...]`, public data if there is any, else `noise_batches`.
        Batches with roughly the client's share of labels are best.
      path: of the last dense layer; default: the one with K outputs.
      learning_rate, steps: of the local SGD; 1 and 1 for a gradient.

    Returns:
      `[K]` integers of sum `batch_size`; `from_counts` makes labels of them.

    Raises:
      ValueError: if the layer is not found or has no bias, or on `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"Expected steps={steps} >= 1.")
    bias_update = _last_bias(update, num_classes, path)
    options = {"num_classes": num_classes, "path": path}

    def mean_p_at(share_and_key: tuple[jax.Array, Key]) -> jax.Array:
        share, probe_key = share_and_key
        there = jax.tree.map(lambda p, u: p - share * u, params, update)
        return probe(probe_key, client, there, probe_batches, **options)

    shares = jnp.linspace(0.0, 1.0 - 1.0 / steps, min(steps, 2))
    keys = jax.random.split(key, len(shares))
    mean_p = jax.lax.map(mean_p_at, (shares, keys)).mean(0)
    return counts(bias_update, mean_p, batch_size, learning_rate * steps)


def _last_bias(update: Update, num_classes: int, path: str | None) -> jax.Array:
    last = layers.last(update, num_classes, path=path)
    if last.bias is None:
        raise ValueError(
            f"Expected the last layer, path={last.path!r}, to have a bias; "
            "label counts are read off its gradient."
        )
    return last.bias


def _label_counts(labels: jax.Array, num_classes: int) -> jax.Array:
    if labels.ndim == 1:
        return jnp.bincount(labels, length=num_classes)
    return labels.sum(0)
