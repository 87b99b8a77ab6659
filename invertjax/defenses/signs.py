"""Updates of one bit."""

import jax.numpy as jnp
import optax


def sign() -> optax.GradientTransformation:
    """Shares the sign of every coordinate: -1, 0 or 1.

    Bernstein et al. (2018), "signSGD: Compressed Optimisation for Non-Convex
    Problems", Algorithm 1. No guarantee; hides all magnitudes. Its derivative is zero
    almost everywhere: an adaptive attacker needs a surrogate.
    """
    return optax.stateless_with_tree_map(lambda leaf, _: jnp.sign(leaf))
