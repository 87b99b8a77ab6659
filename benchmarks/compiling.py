"""What a cold attack compiles: seconds of processor time, and what its steps take.

    python -m benchmarks.compiling --model=resnet20 --attack=gauss_newton

Nothing is read from a cache of compiled programs. Processor time counts all threads, so
that it hardly depends on what else the machine does; the load is printed beside it.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_compilation_cache", False)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import models  # noqa: E402
from invertjax import attacks, candidates, clients, driver, losses  # noqa: E402
from invertjax.rewrites import smoothing  # noqa: E402


def timed(name: str, function: Callable[[], Any]) -> Any:
    """Returns the result, and prints the processor seconds that it took."""
    begin = time.process_time()
    found = function()
    print(f"{name}: {time.process_time() - begin:.1f} s", flush=True)
    return found


def main() -> None:
    """Compiles one attack on one random image batch, and runs a few steps."""
    asked = _parse()
    print(f"load {os.getloadavg()[0]:.1f}; seconds of processor time")
    shape = (asked.batch, asked.side, asked.side, 3)
    net = models.build(asked.model, image_shape=shape[1:], num_classes=10)
    compiled = driver.quick.jit if asked.quick else jax.jit
    init = compiled(net.init)
    params, buffers = timed(
        "initial weights", lambda: jax.block_until_ready(init(jax.random.key(0)))
    )
    loss_fn = losses.classification(lambda p, x: net.apply(p, buffers, x, True)[0])
    label = jnp.arange(asked.batch) % 10
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    batch, key = {"image": image, "label": label}, jax.random.key(0)
    share = compiled(clients.gradient(loss_fn))
    update = timed(
        "client's update", lambda: jax.block_until_ready(share(params, batch, key))
    )
    keys = jax.random.split(jax.random.key(1), (1, 1))
    arguments = params, jax.tree.map(lambda leaf: leaf[None], update), keys
    make = _maker(asked, loss_fn, shape, label)
    program = timed("attack", lambda: driver.build(make, *arguments))
    if asked.attack != "gauss_newton":  # whose steps differ in length
        begin = time.process_time()
        driver.run(program, *arguments)
        each = (time.process_time() - begin) / asked.steps
        print(f"step: {1e3 * each:.1f} ms")


def _maker(
    asked: argparse.Namespace, loss_fn: Any, shape: tuple[int, ...], label: jax.Array
) -> Callable[[Any, Any], Any]:
    def make(params: Any, observed: Any) -> Any:
        def softened(batch: Any, sharpness: jax.Array) -> Any:
            soft = smoothing.softened(loss_fn, sharpness)
            client = clients.gradient(soft, rule="plain")
            return clients.at(client, params, jax.random.key(0))(batch)

        share = clients.at(clients.gradient(loss_fn), params, jax.random.key(0))
        guess = candidates.pixels(shape, label)
        more = {"softened": softened} if asked.attack == "gauss_newton" else {}
        return getattr(attacks, asked.attack)(
            share, observed, guess, steps=asked.steps, **more
        )

    return make


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling")
    parser.add_argument("--model", choices=models.NAMES, default="resnet20")
    attack = ("inverting_gradients", "gauss_newton", "deep_leakage")
    parser.add_argument("--attack", choices=attack, default=attack[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--quick",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether what runs once is compiled by driver.quick.jit, as in commands",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
