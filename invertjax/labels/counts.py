"""How often each label occurs in a batch, from the gradient of the last bias."""

import jax
import jax.numpy as jnp
import optax


def counts(
    bias_update: jax.Array,
    mean_probabilities: jax.Array,
    batch_size: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Returns how often each label occurs: b (mean p - bias_update / scale), rounded.

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
    share = mean_probabilities - bias_update / scale
    # The nearest point has zeros from 1 below the largest share on, and is the same for
    # shares moved together: so they are small numbers, however large the update is.
    share = jnp.clip(share - jnp.max(share), -1, 0)
    estimate = batch_size * share
    estimate = optax.projections.projection_simplex(estimate, batch_size)
    whole = jnp.floor(estimate)
    classes = jnp.arange(len(whole))
    # Largest remainder first. What follows only uses what was sorted: XLA may compute
    # `whole` again for every use, and then round an estimate near an integer both ways.
    _, whole, order = jax.lax.sort((whole - estimate, whole, classes), num_keys=1)
    whole += classes < batch_size - whole.sum()
    return jnp.zeros_like(classes).at[order].set(whole.astype(classes.dtype))


def mean_probabilities(bias_grad: jax.Array, label_counts: jax.Array) -> jax.Array:
    """Returns mean p of a batch of known labels, bias_grad + counts / b.

    This is `counts` solved for p. It needs no logits, so it suits any network and any
    loss that ends in a softmax.

    Args:
      bias_grad: `[K]`, of the last layer.
      label_counts: `[K]`, of sum b; soft labels count in parts.

    Returns:
      `[K]`, of sum 1.
    """
    return bias_grad + label_counts / label_counts.sum()


def from_counts(counts: jax.Array, batch_size: int) -> jax.Array:
    """Returns labels `[batch_size]` in ascending order, from counts `[K]`."""
    classes = jnp.arange(len(counts))
    return jnp.repeat(classes, counts, total_repeat_length=batch_size)
