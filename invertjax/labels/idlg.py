"""The label of a batch of one: Zhao, Mopuri, Bilen (2020), "iDLG"."""

import jax
import jax.numpy as jnp


def idlg(weight_grad: jax.Array, bias_grad: jax.Array | None = None) -> jax.Array:
    """Returns the label of a batch of one.

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
