"""What a run will cost, before anything is compiled. Rough.

Operations are those that XLA counts in the traced program, so that no model needs an
entry here; the time to compile follows the number of equations of that program.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import clients, distances
from invertjax.auditing import Local
from invertjax.auditing.attacker import Attacker
from invertjax.base import Batch, Params
from invertjax.cli import progress
from invertjax.rewrites import equations

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown

SHARE = 0.2  # of the peak of matrix products that small models reach
TRAINING = 3 / 7  # of an iteration's passes: a gradient alone, see `clients.gradient`
COMPILE = 3.0  # seconds a program takes to compile, whatever it does
COMPILE_EACH = 0.0045  # further seconds for each equation of an iteration
MEMORY = 8  # bytes of updates and params for each coordinate


class Estimate(NamedTuple):
    """running, compiling: seconds of them. memory: bytes of updates held at a time."""

    running: float
    compiling: float
    memory: float

    @property
    def seconds(self) -> float:
        """In all."""
        return self.running + self.compiling

    def plus(self, other: "Estimate") -> "Estimate":
        """Returns the estimate of one run after another."""
        return Estimate(
            self.running + other.running,
            self.compiling + other.compiling,
            max(self.memory, other.memory),
        )

    def __str__(self) -> str:
        time = progress.duration(self.seconds)
        compiling = progress.duration(self.compiling)
        return (
            f"about {time}, {compiling} of them to compile, "
            f"{self.memory / 1e6:.0f} MB of updates"
        )


class Count(NamedTuple):
    """The operations of an iteration of gradient matching, and the size of the network.

    image: operations for each image of a batch. update: operations for comparing two
    updates, whatever the batch. params: coordinates of an update. equations: of the
    traced iteration.
    """

    image: float
    update: float
    params: int
    equations: int

    def attack(self, images: int) -> float:
        """Returns the operations of an iteration on so many images."""
        return images * self.image + self.update

    @property
    def compiling(self) -> float:
        """Seconds that a program of such iterations takes to compile."""
        return COMPILE + COMPILE_EACH * self.equations


NOTHING = Count(0.0, 0.0, 0, 0)


def iterations(
    row: Attacker,
    steps: int | None,
    restarts: int | None,
    warm: Attacker | None = None,
) -> int:
    """Returns how many iterations of gradient matching an attack's work comes to.

    Args:
      row, steps, restarts: of the attack; None: its own.
      warm: row of the attack that it starts from.
    """
    each = row.work * (steps or row.steps or 1)
    if warm is not None:
        each += warm.work * (warm.steps or 1)
    return each * (restarts or 1)


def of_update(
    loss_fn: Callable[..., jax.Array],
    params: Params,
    shape: tuple[int, ...],
    iterations: int,
    local: Local | None = None,
) -> Estimate | None:
    """Returns the estimate of an attack on one update; None where it cannot be counted,
    as the loss takes no batch of one image.

    Args:
      loss_fn: `(params, batch) -> []`.
      params: of the network.
      shape: `(B, H, W, C)` of the images behind the update.
      iterations: from `iterations`.
      local: the client's training, if it trained.
    """
    try:
        found = count(loss_fn, params, one_image(shape[1:]))
    except Exception:  # of the reader's own code
        return None
    images = local.steps * local.batch_size if local else shape[0]
    running = iterations * found.attack(images) / speed()
    return Estimate(running, found.compiling, MEMORY * found.params)


def say(estimate: Estimate | None, row: Attacker | None = None) -> None:
    """Prints an estimate, if there is one.

    Args:
      estimate: of the run.
      row: of the attack, which may yet choose another.
    """
    if estimate is not None:
        chooses = row is not None and row.choose is not None
        less = "; less where a closed form is found" if chooses else ""
        print(f"Estimate: {estimate}{less}.", flush=True)


def one_image(shape: tuple[int, ...]) -> Batch:
    """Returns the shapes of a batch of one image (H, W, C)."""
    return {
        "image": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }


def count(
    loss_fn: Callable[..., jax.Array], params: Params, batch: Batch, *rest: Any
) -> Count:
    """Counts an iteration of gradient matching, without compiling it.

    Args:
      loss_fn: `(params, batch, *rest) -> []`.
      params, batch, rest: arrays or their shapes; the batch is of one image.
    """
    size = sum(leaf.size for leaf in _jax.tree.leaves(params))
    flat = jax.ShapeDtypeStruct((size,), jnp.float32)
    update, _ = _counted(_jax.value_and_grad(distances.cosine), flat, flat)
    whole, length = _counted(_iteration(loss_fn), batch, params, params, *rest)
    return Count(whole - update, update, size, length)


@functools.cache
def speed() -> float:
    """Returns the operations a second that small models reach on this machine."""
    return peak() * SHARE


def peak(side: int = 512) -> float:
    """Measures the operations a second in products of matrices, on all devices; that
    takes a moment."""
    devices = _jax.local_device_count()
    a = _jax.device_put(np.ones((side, side), np.float32))
    product = _jax.jit(_squared)
    product(a).block_until_ready()
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.1:
        product(a).block_until_ready()
        done += 1
    rate = 2 * side**3 * done / (time.perf_counter() - begin)
    return rate * (devices if _jax.default_backend() != "cpu" else 1)


def _squared(a: jax.Array) -> jax.Array:
    return a @ a


def _iteration(loss_fn: Callable[..., jax.Array]) -> Callable[..., Any]:
    """An iteration: what the client would share, its distance, and the gradient."""

    def iteration(batch: Batch, params: Params, observed: Any, *rest: Any) -> Any:
        # Convolutions are counted as such, which traces twice as fast.
        client = clients.gradient(
            lambda params, batch: loss_fn(params, batch, *rest), matrix_products=False
        )

        def objective(image: jax.Array) -> jax.Array:
            guess = client(params, {**batch, "image": image}, jax.random.key(0))
            return distances.cosine(guess, observed)

        return _jax.value_and_grad(objective)(batch["image"])

    return iteration


def _counted(function: Callable[..., Any], *args: Any) -> tuple[float, int]:
    """Counts the operations and the equations of a function of shapes, as lowered for
    the CPU.

    Other backends, which are plugins, can only count what they have compiled.
    """
    try:
        device = _jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = None
    with _jax.default_device(device):
        traced = _jax.jit(function).trace(*args)
        lowered = traced.lower()
        cost: Any = lowered.cost_analysis() or lowered.compile().cost_analysis()
    return float(cost["flops"]), equations.count(traced.jaxpr)
