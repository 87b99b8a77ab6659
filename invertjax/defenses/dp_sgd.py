"""Differentially private gradients, example by example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invertjax import clients, trees
from invertjax.base import Batch, Client, Key, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.clipping import clip
from invertjax.defenses.noise import gaussian_noise


@clients.keeps_plain
def dp_sgd(
    client: Client,
    max_norm: jax.typing.ArrayLike,
    noise_multiplier: jax.typing.ArrayLike,
    *,
    examples_at_once: int | None = None,
) -> Client:
    """Makes a client that shares the noisy mean of its examples' clipped gradients.

        (sum over i of g_i min(1, C / |g_i|) + N(0, (z C)^2)) / B

    with g_i the gradient on row i alone, |g_i| the norm of its whole tree, C `max_norm`
    and z `noise_multiplier`: Abadi et al. (2016), "Deep Learning with Differential
    Privacy", Algorithm 1. Every coordinate has noise of standard deviation z C / B, and
    every leaf, call and client its own draw. Gradients are clipped, added up and noised
    in float32 or wider, and rounded once, to the dtype in which the client shares. What
    it guarantees depends on how the batches are drawn: see `accounting`.

    Inside `clients.local` every local step is private, as long as `optimizer` sees
    nothing else of the data. An attacker who knows of it runs `dp_sgd(client, C, 0.0)`
    backwards, which is all but the noise (`attacks.posterior`).

    The guarantee needs gradients that depend on one example each. Here batch norm sees
    one image at a time: it cannot mix examples, but is no batch norm any more. Running
    statistics of the data, in or beside the params, are not covered.

    Args:
      client: `(params, batch, key) -> update`, a gradient of a mean over examples, e.g.
        `clients.gradient(loss_fn)`. It is given batches of one row, and for every row a
        key of its own. Every entry of the batch has the rows along its first axis.
      max_norm: `[]`, C > 0, in units of the gradient of one example.
      noise_multiplier: `[]`, z >= 0. Studies sweep .01 to 1.1.
      examples_at_once: rows whose gradients are held in memory together; divides B.
        Default: all B, so B times the params. Attacks then compute them twice.

    Raises:
      ValueError: on a number out of range (when called, if it depends on the batch).
    """
    ranges.check("max_norm", max_norm, above=0)
    ranges.check("noise_multiplier", noise_multiplier, at_least=0)
    if examples_at_once is not None:
        ranges.check("examples_at_once", examples_at_once, at_least=1)

    def private(params: Params, batch: Batch, key: Key) -> Update:
        client_key, noise_key = jax.random.split(key)
        size = jax.tree.leaves(batch)[0].shape[0]

        def clipped(key: Key, example: Batch) -> Update:
            one = jax.tree.map(lambda leaf: leaf[None], example)
            return _apply(clip(max_norm), trees.wide(client(params, one, key)))

        def total(rows: tuple[Key, Batch]) -> Update:
            return jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(clipped)(*rows))

        rows = jax.random.split(client_key, size), batch
        summed = _in_parts(total, rows, size, examples_at_once)
        noise = gaussian_noise(noise_key, jnp.multiply(noise_multiplier, max_norm))
        mean = jax.tree.map(lambda leaf: leaf / size, _apply(noise, summed))
        return trees.rounded(mean, _shared(client, params, batch, key))

    return private


def _shared(client: Client, params: Params, batch: Batch, key: Key) -> Update:
    """Returns what the client shares of one row, as shapes and dtypes."""
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    return jax.eval_shape(client, params, one, key)


def _apply(transform: optax.GradientTransformation, update: Update) -> Update:
    return transform.update(update, transform.init(update))[0]


def _in_parts(
    total: Callable[[Any], Update],
    rows: tuple[Key, Batch],
    size: int,
    at_once: int | None,
) -> Update:
    """Computes `total(rows)` as a sum over parts of `at_once` rows."""
    if at_once is None or at_once == size:
        return total(rows)
    if size % at_once:
        raise ValueError(f"Expected examples_at_once={at_once} to divide {size} rows.")
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, at_once, *leaf.shape[1:]), rows)

    def add(sum_so_far: Update, part: Any) -> tuple[Update, None]:
        return optax.tree.add(sum_so_far, total(part)), None

    # Checkpointed: kept for the derivative, they would be all the gradients again.
    zeros = optax.tree.zeros_like(jax.eval_shape(total, rows))
    return jax.lax.scan(jax.checkpoint(add), zeros, parts)[0]
