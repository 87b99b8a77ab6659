"""Convolutions as matrix products against XLA's own, side by side, in one attack.

    python -m benchmarks.convolutions

Prints milliseconds an image and iteration of `inverting_gradients` on `convnet5`
(32x32x3), the two forms in turn, median of five rounds.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import models
from invertjax import attacks, candidates, clients, driver, losses

STEPS, ROUNDS = 8, 5


def program(batch_size: int, restarts: int, matrix_products: bool):
    """A compiled attack, as a function that runs it once and returns its seconds."""
    shape = (batch_size, 32, 32, 3)
    net = models.build("convnet5", image_shape=shape[1:], num_classes=10)
    params, buffers = jax.jit(net.init)(jax.random.key(0))
    loss_fn = losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )
    client = clients.gradient(loss_fn, matrix_products=matrix_products)
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    batch = {"image": image, "label": jnp.arange(batch_size) % 10}
    update = jax.jit(client)(params, batch, jax.random.key(0))
    updates = jax.tree.map(lambda leaf: leaf[None], update)

    def make_attack(params, observed):
        backwards = clients.at(client, params, jax.random.key(0))
        guess = candidates.pixels(shape, batch["label"])
        return attacks.inverting_gradients(backwards, observed, guess, steps=STEPS)

    keys = jax.random.split(jax.random.key(1), (1, restarts))
    built = driver.build(make_attack, params, updates, keys)
    return lambda: driver.run(built, params, updates, keys).seconds


def main() -> None:
    print(f"jax {jax.__version__}, {jax.devices()}", file=sys.stderr)
    print("batch  restarts  matrix products  XLA's own  ratio")
    for batch_size, restarts in ((1, 1), (8, 1), (1, 8)):
        runs = [program(batch_size, restarts, form) for form in (True, False)]
        seconds = np.array([[run() for run in runs] for _ in range(ROUNDS + 1)])[1:]
        each = np.median(seconds, axis=0) * 1e3 / (STEPS * batch_size * restarts)
        ratio = np.median(seconds[:, 1] / seconds[:, 0])
        cells = f"{each[0]:12.1f} ms {each[1]:7.1f} ms {ratio:6.1f}"
        print(f"{batch_size:5}  {restarts:8}  {cells}")


if __name__ == "__main__":
    main()
