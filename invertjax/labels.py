"""Labels in closed form, from what the last dense layer of a classifier shares.

With softmax cross-entropy and p the probabilities of the network, the gradient of the
last bias is the mean of p_i - onehot(y_i). So a batch of one shows its label as the
only negative sign, and a batch of b shows how often each label occurs, as far as the
mean of p is known: counts = b (mean p - gradient).

All functions keep the sign of FedAvg updates `params_before - params_after`, which for
SGD is that of a gradient.
"""

import jax
import jax.numpy as jnp
import optax

from invertjax import layers
from invertjax.base import Batch, Client, Key, Params, Update


def idlg(weight_grad: jax.Array, bias_grad: jax.Array | None = None) -> jax.Array:
    """The label of a batch of one.

    dL/dc_j = p_j - [j = y] is negative for j = y alone, and dL/dW_j = h dL/dc_j. So the
    label is the least entry of the bias gradient; or, without a bias, the one column
    of the weight gradient whose product with every other column is negative,
    whatever the signs of the features h. Zhao et al. (2020), "iDLG: Improved Deep
    Leakage from Gradients", their extraction rule; we compare cosines, so that small
    probabilities count as much as large ones. Ties, as between two classes, go to the
    column of negative sum, which is right for features >= 0 only.

    Args:
      weight_grad: `[in, K]`, at any positive scale.
      bias_grad: `[K]` or None.

    Returns:
      `[]` integer in [0, K).
    """
    if bias_grad is not None:
        return jnp.argmin(bias_grad)
    largest = jnp.max(jnp.abs(weight_grad), axis=0)[None]
    columns = weight_grad / jnp.where(largest > 0, largest, 1)
    norms = jnp.linalg.norm(columns, axis=0)[None]
    columns = columns / jnp.where(norms > 0, norms, 1)
    cosines = columns.T @ columns
    others = jnp.where(jnp.eye(len(cosines), dtype=bool), -jnp.inf, cosines)
    return jnp.argmin(others.max(axis=1) + 1e-3 * jnp.sign(columns.sum(axis=0)))


def counts(
    bias_update: jax.Array,
    mean_probabilities: jax.Array,
    batch_size: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """How often each label occurs: b (mean p - bias_update / scale), made whole.

    The estimate goes to the nearest point with no negative count and sum b, and from
    there to integers by largest remainder. With the true mean p it is exact, repeats
    included. The identity is behind Wainakh et al. (2022), "User-Level Label Leakage
    from Gradients in Federated Learning", and Geng et al. (2021), "Towards General
    Deep Leakage in Federated Learning", who both start from weights and features.

    Args:
      bias_update: `[K]`, of the last layer.
      mean_probabilities: `[K]`, the mean of p over the batch, or a guess.
      batch_size: b >= 1.
      scale: of the update: 1 for a gradient, learning_rate * steps for plain SGD.

    Returns:
      `[K]` integers >= 0 of sum b.
    """
    estimate = batch_size * (mean_probabilities - bias_update / scale)
    estimate = optax.projections.projection_simplex(estimate, batch_size)
    whole = jnp.floor(estimate)
    classes = jnp.arange(len(whole))
    # Largest remainder first. All that follows is read off what was sorted: XLA may
    # compute `whole` once for every use, and round an estimate near an integer to both
    # its sides.
    _, whole, order = jax.lax.sort((whole - estimate, whole, classes), num_keys=1)
    whole += classes < batch_size - whole.sum()
    return jnp.zeros_like(classes).at[order].set(whole.astype(classes.dtype))


def mean_probabilities(bias_grad: jax.Array, label_counts: jax.Array) -> jax.Array:
    """Mean p of a batch of known labels, bias_grad + counts / b: `counts` inverted.

    Needs no logits, hence any network and any loss that ends in a softmax.

    Args:
      bias_grad: `[K]`, of the last layer.
      label_counts: `[K]`, of sum b; soft labels count in parts.

    Returns:
      `[K]`, of sum 1.
    """
    return bias_grad + label_counts / label_counts.sum()


def from_counts(counts: jax.Array, batch_size: int) -> jax.Array:
    """Labels `[batch_size]` in ascending order, from counts `[K]` of that sum."""
    classes = jnp.arange(len(counts))
    return jnp.repeat(classes, counts, total_repeat_length=batch_size)


def noise_batches(
    key: Key, number: int, batch_size: int, shape: tuple[int, ...], num_classes: int
) -> Batch:
    """Probes for a server that has no public data: noise images, random labels.

    Pixels are .5 + .25 n, clipped to [0, 1], with n of unit variance and an amplitude
    spectrum of 1/f, that of natural images: Field (1987), "Relations between the
    statistics of natural images and the response properties of cortical cells".
    Enough for an untrained network; a trained one tells noise from images, so that
    public data does better.

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
    # the mean has no frequency; it is drawn like the lowest there is
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
    """Mean p of a network over probe batches, from the client's own gradients.

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

    def one(batch_and_key):
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
    """Label counts of the batch behind an update: `probe` for mean p, then `counts`.

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

    def mean_p_at(share_and_key):
        share, probe_key = share_and_key
        there = jax.tree.map(lambda p, u: p - share * u, params, update)
        return probe(probe_key, client, there, probe_batches, **options)

    shares = jnp.linspace(0.0, 1.0 - 1.0 / steps, min(steps, 2))
    keys = jax.random.split(key, len(shares))
    mean_p = jax.lax.map(mean_p_at, (shares, keys)).mean(0)
    return counts(bias_update, mean_p, batch_size, learning_rate * steps)


def _last_bias(update, num_classes, path):
    last = layers.last(update, num_classes, path=path)
    if last.bias is None:
        raise ValueError(
            f"Expected the last layer, path={last.path!r}, to have a bias; "
            "label counts are read off its gradient."
        )
    return last.bias


def _label_counts(labels, num_classes):
    if labels.ndim == 1:
        return jnp.bincount(labels, length=num_classes)
    return labels.sum(0)
