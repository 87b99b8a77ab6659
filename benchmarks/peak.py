"""The machine: its devices, its versions, and its matrix-product peak."""

import importlib.metadata
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import protocol


def machine() -> dict:
    """What the figures were measured on."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "platform": device.platform,
        "device": _cpu() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{f"{name}_version": importlib.metadata.version(name) for name in packages},
    }


def products(rounds: int = 5) -> dict:
    """Floating-point operations a second of square float32 products: the best size.

    At JAX's default precision, as in the attacks.
    """
    sizes = (2048, 4096) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    return {"flops_per_second": max(_product(size, rounds) for size in sizes)}


def _product(size, rounds):
    """The median pace of `[size, size]` products."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    multiply = jax.jit(jnp.matmul)
    # About 0.1 s a round on a fast device, so that launching does not count.
    repeats = 1 if jax.default_backend() == "cpu" else 20
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        product = multiply(a, b)
        for _ in range(repeats - 1):
            product = multiply(a, b)
        product.block_until_ready()
        seconds.append((time.perf_counter() - begin) / repeats)
    return 2 * size**3 / float(np.median(seconds[1:]))


def _cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


if __name__ == "__main__":
    protocol.answer({"machine": machine, "products": products})
