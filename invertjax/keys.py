"""Takes PRNG keys of either of JAX's kinds."""

from typing import Any

import jax
import jax.numpy as jnp

from invertjax.base import Key


def is_key(leaf: Any) -> bool:
    """Returns whether an array is of typed keys, as `jax.random.key` makes them."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def typed(key: Any, name: str = "key") -> Key:
    """Returns the keys as typed ones: those of `jax.random.PRNGKey` are wrapped.

    A key of the old kind is an array of integers like any other, that code which keeps
    state, or counts axes, would take for data. It draws the same when it is wrapped.

    Args:
      key: keys of either kind, `[...]` or of the old kind uint32 `[..., 2]`.
      name: of the argument.

    Raises:
      ValueError: on what is no key.
    """
    if is_key(key):
        return key
    size = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    if getattr(key, "dtype", None) != jnp.uint32 or key.shape[-1:] != size:
        shown = jax.typeof(key) if hasattr(key, "dtype") else repr(key)
        raise ValueError(f"Expected {name}={shown} to be a key: jax.random.key(seed).")
    return jax.random.wrap_key_data(jnp.asarray(key))
