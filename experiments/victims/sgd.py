"""Plain training of a victim on public images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset
from experiments.settings.victim import Victim
from experiments.victims.network import Network
from invertjax.rewrites import convolutions


def train(
    of: Network,
    params: Any,
    buffers: Any,
    data: Dataset,
    victim: Victim,
    seed: int,
    progress: Callable[[Any, str], Any],
    *,
    batch_size: int = 64,
    chunk: int = 20,
) -> tuple[Any, Any, float]:
    """Trains by SGD with momentum 0.9.

    Returns:
      Params, buffers, and the accuracy on the last `chunk` batches; NaN where outputs
      are no logits.
    """
    optimizer = optax.sgd(victim.train_lr, momentum=0.9)

    def value(params: Any, buffers: Any, images: Any, labels: Any) -> Any:
        logits, buffers = of.net.apply(params, buffers, images, True)
        hits = jnp.array(jnp.nan)
        if logits.shape == (len(labels), data.num_classes):  # else they are no logits
            hits = jnp.mean(jnp.argmax(logits, -1) == labels)
        return of.compared(logits, labels), (buffers, hits)

    if convolutions.preferred():
        value = convolutions.as_matrix_products(value)

    def step(carry: Any, batch: Any) -> Any:
        params, buffers, state = carry
        grads, (buffers, hits) = jax.grad(value, has_aux=True)(params, buffers, *batch)
        delta, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, delta), buffers, state), hits

    many = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches))
    random = np.random.default_rng(seed)
    carry = (params, buffers, optimizer.init(params))
    hits = jnp.zeros(1)
    for first in progress(range(0, victim.train_steps, chunk), "training the victim"):
        count = min(chunk, victim.train_steps - first)
        rows = random.integers(len(data.images), size=(count, batch_size))
        carry, hits = many(carry, (data.images[rows], data.labels[rows]))
    return carry[0], carry[1], float(jnp.mean(hits))
