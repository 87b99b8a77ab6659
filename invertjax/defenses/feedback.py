"""Remembers what compression left out, for the next update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invertjax.base import Params, Update


class FeedbackState(NamedTuple):
    """What compression has left out so far.

    residual: like the update, float32 or wider; inner: the state of what is wrapped.
    """

    residual: optax.Updates
    inner: optax.OptState


def error_feedback(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Shares q = transform(u + e) and keeps e' = u + e - q for the next update.

    What is shared over rounds, plus what is kept, is the sum of the updates: nothing
    is lost, only late. Stich et al. (2018), "Sparsified SGD with Memory", Algorithm 1;
    Karimireddy et al. (2019), "Error Feedback Fixes SignSGD", Algorithm 1; the residual
    of Aji and Heafield (2017). Around noise it takes back in each round what the last
    one added, so that the noise does not add up.

    The memory is the state of the transform, which must be carried over rounds or local
    steps (`optax.chain` it before a client's optimiser). `defend` carries none: there
    only `transform` acts.

    No guarantee, and over rounds less protection than `transform` alone: whoever sees
    all rounds adds them up.

    Args:
      transform: for a bounded residual |x - transform(x)| < |x|, as with `prune`,
        `quantise` and `clip`, but not with `sign`, whose scale is its own, nor with
        `sparsify(unbiased=True)` of more than half.
    """

    def init(params: Params) -> FeedbackState:
        residual = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, _wide(leaf)), params)
        return FeedbackState(residual, transform.init(params))

    def update(
        updates: Update, state: Any, params: Params | None = None
    ) -> tuple[Update, FeedbackState]:
        owed = jax.tree.map(jnp.add, updates, state.residual)
        rounded = jax.tree.map(lambda o, leaf: o.astype(leaf.dtype), owed, updates)
        shared, inner = transform.update(rounded, state.inner, params)
        return shared, FeedbackState(jax.tree.map(jnp.subtract, owed, shared), inner)

    return optax.GradientTransformation(init, update)


def _wide(leaf: jax.Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)
