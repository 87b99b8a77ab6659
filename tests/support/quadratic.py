"""An attack that is cheap to compile: a quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from invertjax import matching
from invertjax.base import Candidate

STEPS = 30
TARGETS = jnp.arange(15.0).reshape(5, 3)


def make_quadratic(shared, trial):
    """|z - target|^2 from a start that differs by key, and is cheap to compile."""
    candidate = Candidate(
        lambda key: jnp.resize(jax.random.key_data(key) % 9, 3).astype(jnp.float32),
        lambda z: {"z": z},
        lambda z: z,
    )
    return matching.minimise(
        lambda z, t: shared * jnp.sum((z - trial["target"]) ** 2),
        candidate,
        optax.sgd(0.1),
        steps=STEPS,
    )


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
