"""The target of a simulated run: our own network, untrained, trained or loaded."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from experiments.settings import sizes
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.run import Run
from experiments.settings.victim import Victim, is_own
from experiments.victims import checkpoint, sgd
from experiments.victims.network import Network, blocks, denormaliser, network
from invertjax.auditing import Local, Target
from invertjax.driver import Cache

Progress = Callable[[Any, str], Any]  # `(iterable, name) -> iterable`


class Built(NamedTuple):
    """A target and the params that its updates are taken at.

    params: leading axis `[N]` where every target has a network of its own.
    buffers: running statistics and the like. each: whether every target has its own
    params. notes: what the report says of its training.
    """

    target: Target
    network: Network
    params: Any
    buffers: Any
    each: bool
    notes: dict[str, Any]


def build(
    of: Data,
    victim: Victim,
    clients: Clients,
    run: Run,
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    train_data: Callable[[], Dataset],
    check: Callable[[Target, Any], None] = lambda target, params: None,
    progress: Progress = lambda items, name: items,
    cache: Cache,
) -> Built:
    """Returns the target of a simulated run: untrained, trained now, or loaded.

    Args:
      of, victim, clients, run: settings.
      image_shape: (H, W, C).
      num_classes: K.
      train_data: `() -> Dataset`, called only if training is needed.
      check: told the target and the shapes of its params, before training; it may
        raise a ValueError.
      progress: a progress bar.
      cache: of networks, and of the last victim.
    """
    made = network(victim, clients.defense, image_shape, num_classes, cache=cache)
    if victim.networks is None:  # its own kind decides
        each = made.fresh and not victim.trained
        victim = dataclasses.replace(
            victim, networks="per_target" if each else "shared"
        )
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    _check_size(victim, shapes[0], of.targets)
    start = {}
    if jax.tree.leaves(shapes[1]):
        start = precise(made.init(jax.random.key(0))[1], run.dtype)
    check(_target(made, victim, clients, image_shape, start, cache), shapes[0])
    identity_ = (*made.key, *identity(of, victim, clients, run))

    def params() -> tuple[Any, Any, dict]:
        return _params(of, victim, run, made, shapes, train_data, progress)

    found, buffers, notes = cache(("victim", identity_), params, most=1)
    whose = statistics(of, victim, clients, run)
    target = _target(made, victim, clients, image_shape, buffers, cache, whose)
    each = victim.networks == "per_target"
    return Built(target, made, found, buffers, each, notes)


def _check_size(victim: Victim, params: Any, targets: int) -> None:
    """Refuses networks that this machine cannot hold, from the shapes of params."""
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    count = targets if victim.networks == "per_target" else 1
    width = "" if victim.width is None else f" --width={victim.width}"
    sizes.refuse(count * each, f"--model={victim.model}{width}: its params")


def identity(of: Data, victim: Victim, clients: Clients, run: Run) -> tuple:
    """Returns what is equal for runs of one architecture that have the same victim."""
    # The targets too: they are left out of the training images.
    return of, victim, clients.batch_size, run


def statistics(of: Data, victim: Victim, clients: Clients, run: Run) -> tuple:
    """Returns whose buffers are part of the functions, () where none are."""
    # What else a model of one's own keeps in buffers may be read in training, too.
    read = victim.norm_mode == "eval" or (is_own(victim.model) and victim.trained)
    return identity(of, victim, clients, run) if read else ()


def local(clients: Clients) -> Local | None:
    """Returns the clients' local training, None where they share a gradient."""
    if not clients.local_steps:
        return None
    return Local(
        clients.local_steps,
        clients.local_batch,
        clients.local_lr,
        bool(clients.local_shuffle),
    )


def _target(
    made: Network,
    victim: Victim,
    clients: Clients,
    image_shape: tuple[int, ...],
    buffers: Any,
    cache: Cache,
    whose: tuple = (),
) -> Target:
    """Returns the target on a network; losses that are the same are one function."""
    train = victim.norm_mode != "eval"

    def parts() -> tuple:
        loss_fn, drawn = made.loss(buffers, train)
        from_input = denormaliser(made.net, image_shape)
        return loss_fn, drawn, made.parts(buffers, train), from_input

    key = ("loss", made.key, train, whose)
    loss_fn, drawn, known, from_input = cache(key, parts)
    return Target(
        loss_fn,
        (clients.batch_size, *image_shape),
        known,
        local(clients),
        clients.defense,
        from_input=from_input,
        blocks=blocks(made, victim),
        drawn=drawn,
    )


def _params(
    of: Data,
    victim: Victim,
    run: Run,
    made: Network,
    shapes: tuple[Any, Any],
    train_data: Callable[[], Dataset],
    progress: Progress,
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns params, buffers and notes: untrained, loaded or trained."""
    loaded = checkpoint.load(victim, run.dtype, *shapes)
    key = jax.random.key(run.seed)
    params, buffers = precise(made.init(key), run.dtype)
    notes: dict[str, Any] = {"trained_steps": 0}
    if victim.networks == "per_target":
        params = precise(_networks(made.init, key, of.targets), run.dtype)
    elif loaded is not None:
        params, buffers, notes = loaded
    elif victim.train_steps:
        params, buffers, accuracy = sgd.train(
            made, params, buffers, train_data(), victim, run.seed, progress
        )
        notes = {"trained_steps": victim.train_steps}
        if not math.isnan(accuracy):
            notes["train_accuracy"] = accuracy
        checkpoint.save(victim, {"params": params, "buffers": buffers})
    return params, buffers, notes


def precise(tree: Any, dtype: str) -> Any:
    """Returns the params in the run's precision: Flax makes float32 whatever JAX's."""

    def cast(leaf: Any) -> np.ndarray:
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return np.asarray(leaf, dtype if floats else leaf.dtype)

    return jax.tree.map(cast, tree)


def _networks(init: Callable, key: jax.Array, count: int) -> Any:
    """Returns network i from `fold_in(key, i)`, stacked on the host."""
    keys = [jax.random.fold_in(key, i) for i in range(count)]
    rows = [jax.device_get(init(own)[0]) for own in keys]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
