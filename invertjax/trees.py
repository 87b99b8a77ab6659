"""Norms and sums of trees: in float32 or wider, at any scale that it can hold.

A square overflows float32 from 1.8e19 on and is lost below 1e-19, and float16 from 256
on. So no norm is taken in a narrower type than float32, and where the plain sum of
squares leaves its range, the tree is scaled before it is squared.
"""

from typing import Any

import jax
import jax.numpy as jnp


def wide(tree: Any) -> Any:
    """Returns every leaf in float32, or wider if it is wider."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), "f4")),
        tree,
    )


def rounded(tree: Any, like: Any) -> Any:
    """Rounds every leaf once, to the dtype of the leaf of `like` in its place."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def power(tree: Any) -> jax.Array:
    """Returns a power of two near the largest magnitude, `[]`, constant to derivatives.

    It is within a factor of 1.5, and dividing by it is exact. Between 2^-126 and 2^126
    in float32, also for a tree of zeros.
    """
    found = _largest(tree)
    kind = jnp.finfo(found.dtype)
    near = jax.lax.reduce_precision(found, exponent_bits=kind.nexp, mantissa_bits=0)
    return jnp.clip(near, kind.tiny, 1 / kind.tiny)


def squared_norm(tree: Any) -> jax.Array:
    """Returns the sum of all squares, `[]`, as it comes: it overflows above 1e38.

    As inner products, since XLA's own sums are slower on CPUs.
    """

    def one(leaf: jax.Array) -> jax.Array:
        return jnp.vdot(leaf, leaf, precision=jax.lax.Precision.HIGHEST)

    return total(jax.tree.map(one, wide(tree)))


def total(tree: Any) -> jax.Array:
    """Returns the sum of scalar leaves, `[]`."""
    leaves = jax.tree.leaves(tree)
    return sum(leaves[1:], start=leaves[0]) if leaves else jnp.zeros(())


def norm(tree: Any) -> jax.Array:
    """Returns the 2-norm over all leaves, `[]`, of slope zero at zero."""
    return _norm(wide(tree))


def unit(tree: Any) -> Any:
    """Returns `tree / |tree|` in float32 or wider, zero for zero.

    Scaling the tree by a power of two does not change a bit of it.
    """
    return _unit(wide(tree))


def rms(tree: Any) -> jax.Array:
    """Returns the root of the mean square over all coordinates, `[]`."""
    return norm(tree) / sum(leaf.size for leaf in jax.tree.leaves(tree)) ** 0.5


def weighted_mean(tree: Any, weights: jax.typing.ArrayLike) -> Any:
    """Returns sum_i w_i x_i / sum_i w_i over the leading axis, rounded once.

    Args:
      tree: leaves `[m, ...]`.
      weights: `[m]`, >= 0, of any size; rows of weight zero do not count, whatever they
        hold. If all are zero, so is the mean.
    """
    weights = jnp.asarray(weights, jnp.float32)
    weights = weights / power(weights)
    summed = jnp.sum(weights)
    summed = jnp.where(summed > 0, summed, 1)

    def one(leaf: jax.Array, found: jax.Array) -> jax.Array:
        # Not a product with zero, since 0 NaN is NaN.
        weighted = jax.vmap(lambda w, x: jnp.where(w > 0, w * x, 0))(weights, found)
        return (jnp.sum(weighted, axis=0) / summed).astype(leaf.dtype)

    return jax.tree.map(one, tree, wide(tree))


@jax.custom_jvp
def _norm(tree: Any) -> jax.Array:
    squares = squared_norm(tree)
    kind = jnp.finfo(squares.dtype)
    # Below the limit, squares that are lost would count. Mostly nothing is scaled.
    plain = (squares > kind.tiny / kind.eps**2) & (squares < jnp.inf)
    return jax.lax.cond(plain, lambda _: jnp.sqrt(squares), _scaled_norm, tree)


@_norm.defjvp
def _norm_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """d|x| = <x / |x|, dx>."""
    (tree,), (along,) = primals, tangents
    return _norm(tree), _inner(_unit(tree), along)


@jax.custom_jvp
def _unit(tree: Any) -> Any:
    length = _divisor(_norm(tree))
    return jax.tree.map(lambda leaf: leaf / length, tree)


@_unit.defjvp
def _unit_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """With u = x / |x|, du = (dx - u <u, dx>) / |x|.

    Written out, since the general rule divides by |x|^2, which may be out of range.
    """
    (tree,), (along,) = primals, tangents
    here, length = _unit(tree), _divisor(_norm(tree))
    part = _inner(here, along)
    change = jax.tree.map(lambda dx, u: (dx - u * part) / length, along, here)
    return here, change


def _scaled_norm(tree: Any) -> jax.Array:
    scale = power(tree)
    scaled = jax.tree.map(lambda leaf: leaf / scale, tree)
    return jnp.sqrt(squared_norm(scaled)) * scale


def _largest(tree: Any) -> jax.Array:
    """Returns the largest magnitude, `[]`, 0 where there are no numbers."""
    leaves = jax.lax.stop_gradient(jax.tree.leaves(wide(tree)))
    found = [jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]
    return jnp.max(jnp.stack(found)) if found else jnp.zeros(())


def _divisor(length: jax.Array) -> jax.Array:
    return jnp.where(length > 0, length, 1)


def _inner(one: Any, other: Any) -> jax.Array:
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST)

    return total(jax.tree.map(product, one, other))
