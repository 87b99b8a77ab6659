"""Noise where it is thought to matter, ever more rarely."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invertjax import keys, trees
from invertjax.base import Key, Params, Update
from invertjax.defenses import ranges
from invertjax.defenses.pruning import largest, prune


class OutpostState(NamedTuple):
    """The state between two updates.

    key: for the draws of the next update; step: `[]` float32, its number.
    """

    key: jax.Array
    step: jax.Array


def outpost(
    key: Key,
    scale: jax.typing.ArrayLike,
    *,
    step: jax.typing.ArrayLike = 0,
    beta: jax.typing.ArrayLike = 0.125,
    noisy: jax.typing.ArrayLike = 0.4,
    pruned: jax.typing.ArrayLike = 0.8,
) -> optax.GradientTransformation:
    """Prunes, and adds noise to the largest coordinates, with probability 1 / (1 + bt).

    At step t, with that probability: in every leaf the share `pruned` of least |g|
    becomes zero, and of all coordinates of the update the share `noisy` with the
    largest g^2 (as diagonal of the Fisher information) gets N(0, (scale r)^2), where
    r = min(1, variance of the leaf's weights) is the assumed risk. Else the update is
    shared as it is. Wang et al. (2023), "More than Enough is Too Much: Adaptive
    Defenses against Gradient Leakage in Production Federated Learning" (Outpost); of
    the code that came with it, which returns its input, we take the rule, not the mean
    of g^2 over the first axis.

    No guarantee. An attacker knows r, and sees in the zeros what was pruned and got no
    noise; leaves whose weights are all equal (biases before training) get none at all,
    and late updates are mostly shared as they are.

    Args:
      key: consumed.
      scale: `[]`, >= 0, the base of the noise; in units of the update per unit of
        variance. Studies sweep .1 to .8.
      step: `[]`, >= 0, the number t of the first update; each further call adds 1.
      beta: `[]`, >= 0, the decay b; 0 defends every update.
      noisy: `[]`, in [0, 1], the share of coordinates with noise; .1 to .4.
      pruned: `[]`, in [0, 1], the share of every leaf set to zero.

    Raises:
      ValueError: on a number out of range; when called without params.
    """
    key = keys.typed(key)
    for name, value in (("scale", scale), ("step", step), ("beta", beta)):
        ranges.check(name, value, at_least=0)
    for name, value in (("noisy", noisy), ("pruned", pruned)):
        ranges.check(name, value, at_least=0, at_most=1)

    def init(params: Params) -> OutpostState:
        del params
        return OutpostState(key, jnp.asarray(step, jnp.float32))

    def update(
        updates: Update, state: Any, params: Params | None = None
    ) -> tuple[Update, OutpostState]:
        next_key, noise_key, act_key = jax.random.split(state.key, 3)
        sparse = prune(pruned).update(updates, optax.EmptyState())[0]
        noise = _noise(noise_key, trees.wide(updates), params, noisy)
        acts = jax.random.bernoulli(act_key, 1 / (1 + beta * state.step))

        def leaf_defended(
            leaf: jax.Array, sparse: jax.Array, noise: jax.Array
        ) -> jax.Array:
            defended = sparse + jnp.asarray(scale, noise.dtype) * noise
            return jnp.where(acts, defended.astype(leaf.dtype), leaf)

        shared = jax.tree.map(leaf_defended, updates, sparse, noise)
        return shared, OutpostState(next_key, state.step + 1)

    return optax.GradientTransformation(init, update)


def _noise(
    key: Key, updates: Update, params: Params | None, share: jax.typing.ArrayLike
) -> Update:
    """Draws the noise at scale 1."""
    if params is None:
        raise ValueError("Expected params=None to be the weights: noise needs them.")

    def leaf_noise(draw: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        risk = jnp.minimum(jnp.var(trees.wide(weights)), 1).astype(draw.dtype)
        return jnp.where(chosen, risk * draw, 0)

    draws = optax.tree.random_like(key, updates)
    chosen = largest(updates, 1 - jnp.asarray(share, jnp.float32))
    return jax.tree.map(leaf_noise, draws, params, chosen)
