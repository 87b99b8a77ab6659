"""Replaces an update by a direction at right angles to it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from invertjax import clients, trees
from invertjax.base import Batch, Client, Key, Loss, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.orthogonal import perpendicular


@clients.keeps_plain
def censor(
    client: Client,
    loss_fn: Loss,
    *,
    learning_rate: jax.typing.ArrayLike,
    trials: int = 20,
) -> Client:
    """Makes a client that shares a vector orthogonal to its update in every leaf.

    In each trial every leaf becomes a random vector orthogonal to it and as long as it;
    shared is the trial with the lowest loss on the client's own batch after the step
    params - learning_rate * shared. Zhang et al. (2025), "CENSOR: Defense Against
    Gradient Inversion via Orthogonal Subspace Bayesian Sampling". The code that came
    with it subtracts <r, g> g / |g| from its draw r where <r, g> g / |g|^2 is meant, so
    that its vectors are orthogonal only to leaves of norm 1; ours are to all. Leaves of
    one coordinate and leaves of zeros become zero.

    To first order such a step leaves the client's own loss as it is: what trains is
    curvature, and where `learning_rate` is small (theirs is 1e-4) the trials differ by
    less than float32 resolves.

    No guarantee. An attacker who knows it sees two equations a leaf: the length of the
    gradient, and one direction that it does not have.

    Args:
      client: `(params, batch, key) -> update`.
      loss_fn: `(params, batch) -> []`, evaluated once a trial.
      learning_rate: `[]`, > 0, of the step that is tried; 1 for clients that share a
        difference of params.
      trials: >= 1; 20 in the settings that came with the paper.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("learning_rate", learning_rate, above=0)
    ranges.check("trials", trials, at_least=1)
    rate = jnp.asarray(learning_rate)

    def censored(params: Params, batch: Batch, key: Key) -> Update:
        client_key, trial_key = jax.random.split(key)
        update = client(params, batch, client_key)

        def trial(carry: Any, _: None) -> tuple[Any, None]:
            key, best = carry
            next_key, draw_key = jax.random.split(key)
            shared = perpendicular(draw_key, update)
            step = jax.tree.map(lambda leaf: -rate * leaf, shared)
            loss = loss_fn(optax.apply_updates(params, step), batch)
            new = loss.astype(jnp.float32), shared
            return (next_key, optax.tree.where(new[0] < best[0], new, best)), None

        # The best loss starts at inf, so that a trial with NaN never wins; if all have
        # NaN, zeros are shared.
        start = (
            jnp.array(jnp.inf, jnp.float32),
            optax.tree.zeros_like(trees.wide(update)),
        )
        (_, (_, shared)), _ = jax.lax.scan(trial, (trial_key, start), length=trials)
        return trees.rounded(shared, update)

    return censored
