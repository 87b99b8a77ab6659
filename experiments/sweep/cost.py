"""What a sweep will cost, before anything is read, compiled or written. Rough."""

import time
from typing import NamedTuple

import jax
import numpy as np

from experiments.settings import checks
from experiments.settings.config import Config
from experiments.sweep.programs import Group

# Operations of an iteration on one RGB image of 32 x 32, and params: XLA's own count.
OPERATIONS = {
    "mlp": 0.013e9,
    "lenet": 0.010e9,
    "cnn": 0.091e9,
    "convnet5": 0.41e9,
    "resnet20": 0.59e9,
    "resnet18": 8.1e9,
    "convnet": 26e9,
}
PARAMS = {
    "mlp": 395e3,
    "lenet": 16e3,
    "cnn": 430e3,
    "convnet5": 279e3,
    "resnet20": 272e3,
    "resnet18": 11.2e6,
    "convnet": 2.9e6,
}
SHARE = 0.2  # of the peak of matrix products that small models reach
PRODUCTS = 300  # iterations' work in a step of least squares
DESCENT = 60  # steps of the recursion
COMPILE = 15.0  # seconds a program
OVERHEAD = 0.05  # seconds a target: its client, its scores


class Estimate(NamedTuple):
    """seconds: in all; memory: bytes of updates and params held at a time."""

    seconds: float
    memory: float

    def __str__(self):
        return f"about {_time(self.seconds)}, {self.memory / 1e6:.0f} MB of updates"


def of(groups: list[Group]) -> Estimate:
    """The whole sweep on this machine."""
    speed = peak() * SHARE
    parts = [one(cell, speed) for group in groups for cell in group.cells]
    seconds = sum(part.seconds for part in parts) + COMPILE * len(groups)
    return Estimate(seconds, max(part.memory for part in parts))


def one(config: Config, speed: float) -> Estimate:
    """A cell, without compiling. speed: operations a second."""
    name = config.model or "cnn"
    pixels = ((config.image_size or 32) / 32) ** 2
    work = OPERATIONS[name] * pixels * config.batch_size * max(1, config.local_steps)
    steps = (config.steps or 1) * (config.restarts or 1)
    if config.attack == "gauss_newton":
        steps *= PRODUCTS
    if checks.recursive(config):
        steps += DESCENT * PRODUCTS
    training = config.train_steps * 64 * OPERATIONS[name] * pixels / 6
    seconds = (config.targets * steps * work + training) / speed
    rows = max(64, config.targets)
    return Estimate(seconds + OVERHEAD * config.targets, rows * 8 * PARAMS[name])


def peak(side: int = 512) -> float:
    """Operations a second in products of matrices, on all devices; takes a moment."""
    count = jax.local_device_count()
    a = jax.device_put(np.ones((side, side), np.float32))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.1:
        product(a).block_until_ready()
        done += 1
    rate = 2 * side**3 * done / (time.perf_counter() - begin)
    return rate * (count if jax.default_backend() != "cpu" else 1)


def _time(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
