"""The engine's own choices, each beside its alternatives, in one attack.

    python -m benchmarks.choices

Milliseconds an image and iteration of `inverting_gradients` on 32x32x3 images, the
alternatives in turn, median of five rounds; in brackets the megabytes that XLA takes
for intermediate results. The last line compares chunks with one uninterrupted loop.
"""

import sys
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import models  # noqa: E402
from invertjax import attacks, candidates, clients, derivatives, driver, losses  # noqa: E402

ROUNDS = 5
RULES = {rule: dict(rule=rule) for rule in derivatives.RULES}
FORMS = {
    "matrix products": dict(matrix_products=True),
    "XLA's own": dict(matrix_products=False),
}
AT_ONCE = {f"{k} at once": dict(at_once=k) for k in (1, 4, 16)}
DEVICES = {f"{n} of 2 cores as devices": dict(count=n) for n in (1, 2)}
# (model, batch, restarts), and what is compared there.
PLAN = (
    (("lenet", 1, 1), RULES),
    (("convnet5", 1, 1), RULES),
    (("convnet5", 8, 1), RULES),
    (("convnet5", 1, 1), FORMS),
    (("convnet5", 8, 1), FORMS),
    (("convnet5", 1, 8), FORMS),
    (("lenet", 1, 32), AT_ONCE),
    (("cnn", 1, 32), AT_ONCE),
    (("lenet", 1, 8), DEVICES),
    (("convnet5", 1, 8), DEVICES),
)


class Contestant:
    """A compiled attack that can be run again and again."""

    def __init__(
        self, model, batch, restarts, *, at_once=None, count=2, steps=None, **client
    ):
        shape = (batch, 32, 32, 3)
        steps = steps or 10 + 200 // (batch * restarts)
        net = models.build(model, image_shape=shape[1:], num_classes=10)
        params, buffers = jax.jit(net.init)(jax.random.key(0))
        loss_fn = losses.classification(
            lambda params, images: net.apply(params, buffers, images, True)[0]
        )
        share = clients.gradient(loss_fn, **client)
        image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
        label = jnp.arange(batch) % 10
        update = jax.jit(share)(
            params, {"image": image, "label": label}, jax.random.key(0)
        )

        def make_attack(params, observed):
            backwards = clients.at(share, params, jax.random.key(0))
            guess = candidates.pixels(shape, label)
            return attacks.inverting_gradients(backwards, observed, guess, steps=steps)

        keys = jax.random.split(jax.random.key(1), (1, restarts))
        self.arguments = params, jax.tree.map(lambda leaf: leaf[None], update), keys
        devices = jax.devices()[:count]
        self.program = driver.build(
            make_attack, *self.arguments, at_once=at_once, devices=devices
        )
        self.work = steps * batch * restarts

    def run(self, chunk_seconds: float = 0.5) -> float:
        """Milliseconds an image and iteration."""
        done = driver.run(self.program, *self.arguments, chunk_seconds=chunk_seconds)
        return done.seconds * 1e3 / self.work

    @property
    def megabytes(self) -> float:
        found: Any = self.program.advance.memory_analysis()
        return found.temp_size_in_bytes / 1e6


def compare(size, alternatives) -> str:
    """One line: every alternative's median."""
    runners = [Contestant(*size, **options) for options in alternatives.values()]
    rounds = np.array([[each.run() for each in runners] for _ in range(ROUNDS + 1)])
    cells = [
        f"{name} {median:.3g} ({each.megabytes:.0f})"
        for name, median, each in zip(
            alternatives, np.median(rounds[1:], axis=0), runners, strict=True
        )
    ]
    model, batch, restarts = size
    return f"{model} batch {batch} restarts {restarts}: {', '.join(cells)}"


def chunks(steps: int = 2_000) -> str:
    """Half-second chunks against chunks that never end before the budget."""
    one = Contestant("lenet", 1, 8, steps=steps)
    ratios = [one.run() / one.run(chunk_seconds=1e6) for _ in range(ROUNDS)]
    return (
        f"lenet, 8 restarts, {steps} steps: chunks take {np.median(ratios):.3f} times"
    )


def main() -> None:
    print(f"jax {jax.__version__}, {jax.devices()}", file=sys.stderr)
    for size, alternatives in PLAN:
        print(compare(size, alternatives), flush=True)
    print(chunks())


if __name__ == "__main__":
    main()
