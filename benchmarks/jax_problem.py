"""A problem's network and trials, for the contestants that are written in JAX."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks import protocol
from benchmarks.problem_file import Arrays, Problem
from invertjax import losses


def paths(tree: Any) -> Arrays:
    """The leaves of a pytree by their joined paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def network(model: str, side: int, mean: float, std: float) -> models.Network:
    """The network of a problem on RGB images; 1,000 classes from 64 pixels on."""
    return models.build(
        model,
        image_shape=(side, side, 3),
        num_classes=1000 if side >= 64 else 10,
        mean=(mean,) * 3,
        std=(std,) * 3,
    )


def loss_of(net: models.Network):
    """Its loss; batch norms take the batch's statistics."""
    _, buffers = jax.eval_shape(net.init, jax.random.key(0))
    # In train mode the running statistics are not used: any will do.
    buffers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), buffers)
    return losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )


def read(problem: Problem):
    """The loss, its params, and trials `[N, ...]`: observed, label, starts.

    Returns:
      `(loss_fn, params, trials)`; arrays are on the default device.
    """
    side = problem.images.shape[2]
    net = network(problem.model, side, problem.mean, problem.std)
    like, _ = jax.eval_shape(net.init, jax.random.key(0))
    trials = {
        "observed": _tree(like, problem.observed),
        "label": jnp.asarray(problem.labels),
        "start": jnp.asarray(problem.starts),
        "total_variation": jnp.full(
            len(problem.labels), problem.total_variation, jnp.float32
        ),
    }
    return loss_of(net), _tree(like, problem.params), trials


def memory() -> int:
    """Peak bytes on the device: this process's own on a CPU."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    return protocol.resident_peak()


def require_memory(compiled) -> None:
    """Raises a MemoryError if a program is too large for this machine's main memory.

    Devices with a memory of their own refuse by themselves.
    """
    needed = compiled.memory_analysis().temp_size_in_bytes
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable") and jax.default_backend() == "cpu":
            there = int(line.split()[1]) * 1024
            if needed > 0.8 * there:
                raise MemoryError(f"needs {needed / 1e9:.0f} GB of {there / 1e9:.0f}")


def _tree(like, arrays: Arrays):
    def leaf(path, _):
        return jnp.asarray(
            arrays[jax.tree_util.keystr(path, simple=True, separator="/")]
        )

    return jax.tree_util.tree_map_with_path(leaf, like)
