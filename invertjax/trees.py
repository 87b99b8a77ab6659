"""Norms and sums of trees: in float32 or wider, and at any scale that it can hold.

A square overflows float16 from 256 on, and float32 from 1.8e19 on; it is lost below
1e-23. So no norm is taken in a narrower type than float32, and where a sum of squares
leaves its range, the tree is scaled before it is squared: by a power of two, which
changes no digit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

SMALL = 4096  # numbers in an array that is joined with others before it is summed


def wide(tree: Any) -> Any:
    """Returns every leaf in float32, or wider if it is wider."""

    def one(leaf: Any) -> jax.Array:
        dtype = jnp.result_type(leaf)
        return jnp.asarray(leaf, jnp.promote_types(dtype, jnp.float32))

    return jax.tree.map(one, tree)


def rounded(tree: Any, like: Any) -> Any:
    """Rounds every leaf once, to the dtype of the leaf of `like` in its place."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def total(tree: Any) -> jax.Array:
    """Returns the sum of scalar leaves, `[]`."""
    leaves = jax.tree.leaves(tree)
    return functools.reduce(jnp.add, leaves) if leaves else jnp.zeros(())


def squared_norm(tree: Any) -> jax.Array:
    """Returns the sum of all squares, `[]`, unscaled: `norm` reaches further."""

    def one(leaf: jax.Array) -> jax.Array:
        # XLA's own sums are slower on CPUs.
        return jnp.vdot(leaf, leaf, precision=jax.lax.Precision.HIGHEST)

    return total([one(leaf) for leaf in _joined(jax.tree.leaves(wide(tree)))])


def _joined(leaves: list[jax.Array]) -> list[jax.Array]:
    """Returns the same numbers in fewer arrays: small ones, such as the biases of deep
    networks, take longer to compile one by one than all of them to copy."""
    small: dict[Any, list[jax.Array]] = {}
    large = []
    for leaf in leaves:
        if leaf.size < SMALL:
            small.setdefault(leaf.dtype, []).append(jnp.ravel(leaf))
        else:
            large.append(leaf)
    return large + [jnp.concatenate(some) for some in small.values()]


def scaled(tree: Any) -> tuple[Any, jax.Array]:
    """Returns a tree that can be squared, and the factor `[]` that makes it of `tree`.

    The factor is a power of two, and constant to derivatives: 1 but for very large and
    very small trees. Norms of scaled trees are at most 2^55 in float32, and what their
    squares lose does not count.
    """
    tree = wide(tree)
    squares = squared_norm(jax.lax.stop_gradient(tree))
    kind = jnp.finfo(squares.dtype)
    factor = 2.0 ** int(0.7 * kind.maxexp)
    small, large = squares < kind.tiny / kind.eps**2, squares > kind.max * kind.eps
    factor = jnp.select([small, large], [factor, 1 / factor], 1.0)
    # Behind the barrier: XLA would pull a scalar out of a product, and scale too late.
    found = jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)
    return jax.lax.optimization_barrier(found), factor.astype(squares.dtype)


def norm(tree: Any) -> jax.Array:
    """Returns the 2-norm over all leaves, `[]`, of slope zero at zero."""
    found, factor = scaled(tree)
    squares = squared_norm(found)
    return jnp.where(squares == 0, 0, _root(squares) / factor)


def unit(tree: Any) -> Any:
    """Returns `tree / |tree|` in float32 or wider, zero for zero.

    Multiplying the tree by a power of two does not change a bit of it.
    """
    found, _ = scaled(tree)
    length = _root(squared_norm(found))
    return jax.tree.map(lambda leaf: leaf / length, found)


def rms(tree: Any) -> jax.Array:
    """Returns the root of the mean square over all coordinates, `[]`."""
    found, factor = scaled(tree)
    squares = squared_norm(found)
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    # Scaled back last: the norm of a tree may overflow where this mean does not.
    return jnp.where(squares == 0, 0, _root(squares) / size**0.5 / factor)


def weighted_mean(tree: Any, weights: jax.typing.ArrayLike) -> Any:
    """Returns sum_i w_i x_i / sum_i w_i over the leading axis, rounded once.

    Args:
      tree: leaves `[m, ...]`.
      weights: `[m]`, >= 0, of any size; rows of weight zero do not count, whatever they
        hold. If all are zero, so is the mean.
    """
    found, _ = scaled(jnp.asarray(weights))
    summed = jnp.sum(found)
    summed = jnp.where(summed > 0, summed, 1)

    def one(leaf: jax.Array, rows: jax.Array) -> jax.Array:
        # Not a product with zero, since 0 NaN is NaN.
        weighted = jax.vmap(lambda w, x: jnp.where(w > 0, w * x, 0))(found, rows)
        return (jnp.sum(weighted, axis=0) / summed).astype(leaf.dtype)

    return jax.tree.map(one, tree, wide(tree))


def _root(squares: jax.Array) -> jax.Array:
    """Returns the root, and 1 of zero, where it has no derivative."""
    return jnp.sqrt(jnp.where(squares == 0, 1, squares))
