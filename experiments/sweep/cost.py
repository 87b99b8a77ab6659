"""What a sweep will cost, before anything is read, compiled or written. Rough.

Operations are those that XLA counts in the traced program, so that a new model needs no
entry here. Images are taken to be RGB, of 32 x 32 pixels where no setting says
otherwise, and of ten classes; a model of the reader's own, which may take no others, is
counted on one of its images.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from experiments.settings.attack import Attack
from experiments.settings.data import Data
from experiments.settings.settings import Settings
from experiments.settings.victim import Victim, is_own
from experiments.sweep.programs import Group
from experiments.victims import inputs, network, own_loss
from invertjax import clients, distances
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import progress

Shape = tuple[int, ...]
SIDE, CHANNELS, CLASSES = 32, 3, 10
SHARE = 0.2  # of the peak of matrix products that small models reach
TRAINED = 64  # images in a step of training the victim
TRAINING = 3 / 7  # of an iteration's passes: a gradient alone, see `clients.gradient`
COMPILE = 15.0  # seconds a program
COUNTED = ("activation", "norm", "width", "hidden")  # what a network's cost depends on
OVERHEAD = 0.05  # seconds a target: its client, its scores


class Estimate(NamedTuple):
    """seconds: in all; memory: bytes of updates and params held at a time."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        time = progress.duration(self.seconds)
        return f"about {time}, {self.memory / 1e6:.0f} MB of updates"


class Count(NamedTuple):
    """The operations of an iteration of gradient matching, and the size of the network.

    image: operations for each image of a batch. update: operations for comparing two
    updates, whatever the batch. params: coordinates of an update.
    """

    image: float
    update: float
    params: int


def of(groups: list[Group]) -> Estimate:
    """Returns the estimate of a whole sweep on this machine."""
    speed = peak() * SHARE
    parts = [one(cell, speed) for group in groups for cell in group.cells]
    seconds = sum(part.seconds for part in parts) + COMPILE * len(groups)
    return Estimate(seconds, max(part.memory for part in parts))


def one(cell: Settings, speed: float) -> Estimate:
    """Returns the estimate of a cell, without compiling.

    Args:
      cell: its settings.
      speed: operations a second.
    """
    data, victim, attack, clients, *_ = cell
    options: dict[str, Any] = {"norm_mode": victim.norm_mode, "loss": victim.loss}
    size: int | Shape = data.image_size or SIDE
    if is_own(victim.model):
        size, options["classes"] = _example(data) or (size, CLASSES)
    else:
        options = {n: getattr(victim, n) for n in COUNTED}
    counted = count(str(victim.model), size, **options)
    images = clients.batch_size
    if clients.local_steps:
        images = clients.local_steps * clients.local_batch
    each = images * counted.image + counted.update
    attacks = data.targets * _iterations(attack) * each
    training = victim.train_steps * TRAINED * TRAINING * counted.image
    rows = max(64, data.targets)
    return Estimate(
        (attacks + training) / speed + OVERHEAD * data.targets,
        rows * 8 * counted.params,
    )


def _iterations(attack: Attack) -> int:
    """Returns how many iterations of gradient matching an attack's work comes to."""
    row = ATTACKERS[attack.attack]
    each = row.work * (attack.steps or 1)
    if attack.warm_start is not None:
        warm = ATTACKERS[attack.warm_start]
        each += warm.work * (warm.steps or 1)
    return each * (attack.restarts or 1)


@functools.cache
def _example(data: Data) -> tuple[Shape, int] | None:
    """Returns (H, W, C) of an image, and K; None where there is none, which is said
    once images are read."""
    try:
        return inputs.example(data)
    except (ValueError, OSError):
        return None


@functools.cache
def count(
    name: str, size: int | Shape, classes: int = CLASSES, **options: Any
) -> Count:
    """Counts an iteration of a model, without compiling it.

    A network that cannot be built for such images cannot be attacked either, which
    costs nothing.

    Args:
      name: of the model.
      size: of the images: their side in pixels, or (H, W, C).
      classes: K.
      options: other settings of the victim.
    """
    shape = (size, size, CHANNELS) if isinstance(size, int) else size
    victim = Victim(model=name, **options)
    try:
        return _counted(network.architecture(victim, shape, classes).net, victim, shape)
    except Exception:  # its cells will say what it is
        return Count(0.0, 0.0, 0)


def _counted(net: models.Network, victim: Victim, shape: Shape) -> Count:
    """Counts an iteration on one image of a shape."""
    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    flat = jax.ShapeDtypeStruct((size,), jnp.float32)
    update = _operations(jax.value_and_grad(distances.cosine), flat, flat)
    batch = {
        "image": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    iteration = _iteration(net, victim)
    whole = _operations(iteration, batch, params, params, buffers)
    return Count(whole - update, update, size)


def _iteration(net: models.Network, victim: Victim) -> Callable[..., Any]:
    """An iteration: what the client would share, its distance, and the gradient."""

    compared, train = own_loss.compared(victim), victim.norm_mode != "eval"

    def iteration(batch: Any, params: Any, observed: Any, buffers: Any) -> Any:
        def loss_fn(params: Any, batch: Any) -> jax.Array:
            logits = net.apply(params, buffers, batch["image"], train)[0]
            return compared(logits, batch["label"])

        # Convolutions are counted as such, which traces twice as fast.
        client = clients.gradient(loss_fn, matrix_products=False)

        def objective(image: jax.Array) -> jax.Array:
            guess = client(params, {**batch, "image": image}, jax.random.key(0))
            return distances.cosine(guess, observed)

        return jax.value_and_grad(objective)(batch["image"])

    return iteration


def _operations(function: Callable[..., Any], *args: Any) -> float:
    """Counts the operations of a function of shapes, as lowered for the CPU.

    Other backends, which are plugins, can only count what they have compiled.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = None
    with jax.default_device(device):
        lowered = jax.jit(function).lower(*args)
        cost: Any = lowered.cost_analysis() or lowered.compile().cost_analysis()
    return float(cost["flops"])


def peak(side: int = 512) -> float:
    """Measures the operations a second in products of matrices, on all devices; that
    takes a moment."""
    devices = jax.local_device_count()
    a = jax.device_put(np.ones((side, side), np.float32))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.1:
        product(a).block_until_ready()
        done += 1
    rate = 2 * side**3 * done / (time.perf_counter() - begin)
    return rate * (devices if jax.default_backend() != "cpu" else 1)
