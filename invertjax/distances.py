"""Distances between updates: a residual, and a reduction of it to a scalar.

Residuals and their reductions are float32 or wider, whatever the updates are.
"""

from typing import Any

import jax
import jax.numpy as jnp

from invertjax import trees
from invertjax.base import Distance, Update


def _difference(guess: Update, observed: Update) -> Update:
    return jax.tree.map(jnp.subtract, trees.wide(guess), trees.wide(observed))


# Sum over all coordinates of (guess - observed)^2: Zhu et al. (2019), "Deep Leakage
# from Gradients", equation 4; the negative log-likelihood under Gaussian noise.
squared = Distance(_difference, trees.squared_norm)

# Sum over all coordinates of |guess - observed|: the negative log-likelihood under
# Laplace noise, Balunovic et al. (2022), "Bayesian Framework for Gradient Leakage".
l1 = Distance(
    _difference,
    lambda r: trees.total(jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf)), r)),
)

# 1 - <guess, observed> / (|guess| |observed|) over the whole update: Geiping et al.
# (2020), "Inverting Gradients", equation 4. Written as half the squared distance of the
# unit vectors: the same number, without the cancellation of 1 - cos near agreement, and
# a least-squares problem. Invariant to positive scaling of either update.
cosine = Distance(
    lambda guess, observed: _difference(trees.unit(guess), trees.unit(observed)),
    lambda r: 0.5 * trees.squared_norm(r),
)


def weighted(distance: Distance, weights: Update) -> Distance:
    """Multiplies the residual of every leaf by its weight.

    Args:
      distance: any distance.
      weights: pytree with the update's structure; scalars (one weight a layer) or
        arrays that broadcast to the leaf. With `squared`, a weight w counts w^2-fold.
    """

    def residual(guess: Update, observed: Update) -> Any:
        return jax.tree.map(
            lambda leaf, weight: leaf * weight,
            distance.residual(guess, observed),
            weights,
        )

    return Distance(residual, distance.reduce)


def per_layer(distance: Distance) -> Distance:
    """Takes a distance leaf by leaf and averages, so that every layer counts alike."""

    def residual(guess: Update, observed: Update) -> Any:
        return jax.tree.map(distance.residual, guess, observed)

    def reduce(residuals: Any) -> jax.Array:
        leaves = jax.tree.leaves(residuals)
        return sum((distance.reduce(leaf) for leaf in leaves), jnp.zeros(())) / len(
            leaves
        )

    return Distance(residual, reduce)


def masked(distance: Distance) -> Distance:
    """Takes a distance over the coordinates that a pruned update still shows.

    A coordinate that was set to zero says next to nothing about its true value; the
    attacker who knows of the pruning ignores it. Balunovic et al.
    (2022), section 5.
    """

    def residual(guess: Update, observed: Update) -> Any:
        visible = jax.tree.map(lambda g, o: jnp.where(o != 0, g, 0.0), guess, observed)
        return distance.residual(visible, observed)

    return Distance(residual, distance.reduce)


def without(distance: Distance, *paths: str) -> Distance:
    """Takes a distance over all layers but some, as if both updates were zero there.

    It is meant for layers whose gradients a defense has changed, or drawn: an attacker
    who knows which they are does not need them. Balunovic et al. (2022), section 5;
    Scheliga et al. (2022), "Combining Variational Modeling with Partial Gradient
    Perturbation".

    Args:
      distance: any distance.
      paths: of nodes or leaves of the update, joined by "/": "layers/3" and all below.

    Raises:
      ValueError: when called, if there is nothing at a path.
    """

    def residual(guess: Update, observed: Update) -> Any:
        for path in paths:
            if not any(jax.tree.leaves(_at_or_below(observed, path))):
                raise ValueError(f"Expected path={path!r} to be in the update.")
        left_out = _at_or_below(observed, *paths)

        def shown(tree: Any) -> Update:
            return jax.tree.map(
                lambda leaf, out: jnp.zeros_like(leaf) if out else leaf, tree, left_out
            )

        return distance.residual(shown(guess), shown(observed))

    return Distance(residual, distance.reduce)


def _at_or_below(tree: Any, *paths: str) -> Any:
    """Says of every leaf whether it is at one of the paths or below."""

    def inside(where: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(where, simple=True, separator="/")
        return any(f"{name}/".startswith(f"{path}/") for path in paths)

    return jax.tree_util.tree_map_with_path(inside, tree)
