"""Networks that are trained until their held-out accuracy first reaches a figure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import models
from experiments import data
from invertjax.base import Loss

RATE, SIZE, EVERY, MOST = 0.1, 64, 5, 400  # of SGD; steps between tests; tests
HELD = 2000  # test images, the last ones


def trainer(
    net: models.Network, loss_fn: Loss, dataset: str, accuracy: float
) -> Callable[[jax.Array], Any]:
    """Makes `key -> params`, by SGD on the train split.

    Args:
      net, loss_fn: what is trained.
      dataset: with a train and a test split.
      accuracy: on the last 2,000 test images, measured every 5 steps; ends it.
    """
    train, test = data.load(dataset, "train"), data.load(dataset, "test")
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
    held = jnp.asarray(test.images[-HELD:]), jnp.asarray(test.labels[-HELD:])

    def step(params: Any, key: jax.Array) -> tuple[Any, None]:
        rows = jax.random.choice(key, len(images), (SIZE,), replace=False)
        batch = {"image": images[rows], "label": labels[rows]}
        slope = jax.grad(loss_fn)(params, batch)
        return jax.tree.map(lambda p, g: p - RATE * g, params, slope), None

    @jax.jit
    def some(params: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params = jax.lax.scan(step, params, jax.random.split(key, EVERY))[0]
        guess = jnp.argmax(net.apply(params, {}, held[0], False)[0], axis=1)
        return params, jnp.mean(guess == held[1])

    def train_one(key: jax.Array) -> Any:
        params = net.init(key)[0]
        for i in range(MOST):
            params, reached = some(params, jax.random.fold_in(key, i))
            if reached >= accuracy:
                break
        return params

    return train_one
