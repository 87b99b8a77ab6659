"""An update from the reader's own code, with the params it was computed at."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.settings.attack import Attack
from experiments.settings.clients import Clients
from experiments.settings.run import Run
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim
from experiments.victims.network import denormaliser, network
from experiments.victims.target import local
from invertjax.auditing import Target
from invertjax.auditing.situations import Threat, shapes_of_batch
from invertjax.cli import arrays
from invertjax.defenses.protection import Parts
from invertjax.driver import Cache


class Given(NamedTuple):
    """target: with its loss. params, update: pytrees of floats of one structure."""

    target: Target
    params: Any
    update: Any


def read(
    saved: SavedUpdate,
    victim: Victim,
    clients: Clients,
    attack: Attack,
    run: Run,
    *,
    cache: Cache,
) -> Given:
    """Reads the files, and tries the loss on their shapes; computes nothing.

    Raises:
      ValueError: naming the flag of what does not fit.
    """
    found = {
        "update": _floats("update", saved.update, run),
        "params": _floats("params", saved.params, run),
    }
    if not any(np.any(leaf) for leaf in found["update"].values()):
        raise ValueError(f"--update={saved.update} holds only zeros.")
    if saved.loss is None:
        return _with_model(saved, victim, clients, found, cache)
    return _with_loss(saved, clients, attack.labels, found)


def num_classes(saved: SavedUpdate) -> int:
    """Returns K, by default that of CIFAR-10."""
    return saved.num_classes or 10


def _floats(flag: str, path: str | None, run: Run) -> dict[str, np.ndarray]:
    named = f"--{flag}={path}"
    assert path is not None  # checked with the settings
    return arrays.as_floats(arrays.load(path, named), run.dtype, named)


def _with_model(
    saved: SavedUpdate, victim: Victim, clients: Clients, found: dict, cache: Cache
) -> Given:
    shape, classes = tuple(saved.image_shape), num_classes(saved)
    made = network(victim, clients.defense, shape, classes, cache=cache)
    like = jax.eval_shape(made.init, jax.random.key(0))[0]
    try:
        params = arrays.as_tree(found["params"], like, f"--params={saved.params}")
        update = arrays.as_tree(found["update"], like, f"--update={saved.update}")
    except ValueError as error:
        sizes = ",".join(map(str, shape))
        raise ValueError(
            f"{error} That is what --model={victim.model} --image_shape={sizes} "
            f"--num_classes={classes} takes."
        ) from None
    buffers = made.init(jax.random.key(0))[1]
    loss_fn, drawn = made.loss(buffers, True)
    target = Target(
        loss_fn,
        (clients.batch_size, *shape),
        made.parts(buffers, True),
        local(clients),
        clients.defense,
        from_input=denormaliser(made.net, shape),
        blocks=made.net.blocks,
        drawn=drawn,
    )
    return Given(target, params, update)


def _with_loss(saved: SavedUpdate, clients: Clients, labels: str, found: dict) -> Given:
    target = Target(
        _imported(saved.loss or ""),
        (clients.batch_size, *saved.image_shape),
        Parts(num_classes(saved)),
        local(clients),
        clients.defense,
    )
    params = _first_form(saved, target, labels, found["params"])
    update = arrays.as_tree(found["update"], params, f"--update={saved.update}")
    return Given(target, params, update)


def _imported(text: str) -> Callable:
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the reader's own module may raise anything
        raise ValueError(
            f"--loss={text}: expected module:function that can be imported "
            f"({type(error).__name__}: {error})."
        ) from None
    if not callable(found):
        raise ValueError(f"--loss={text} is no function.")
    return found


def _first_form(saved: SavedUpdate, target: Target, labels: str, found: dict) -> Any:
    """Returns the tree of which the loss takes the arrays; see `arrays.forms`."""
    batch = shapes_of_batch(target, Threat(labels))
    errors = []
    for params in arrays.forms(found):
        try:
            value = jax.eval_shape(target.loss_fn, params, batch)
            _check_scalar(value)
            jax.eval_shape(jax.grad(target.loss_fn), params, batch)
            return params
        except Exception as error:  # the reader's own code may raise anything
            errors.append(error)
    reason = (str(errors[0]).splitlines() or [""])[0]
    raise ValueError(
        f"--loss={saved.loss} fails on images of shape {batch['image'].shape}, labels "
        f"of shape {batch['label'].shape} and the arrays of --params={saved.params}: "
        f"{type(errors[0]).__name__}: {reason}"
    )


def _check_scalar(value: Any) -> None:
    if getattr(value, "shape", None) != ():
        found = jax.tree.map(lambda leaf: leaf.shape, value)
        raise ValueError(f"it returns shape {found}, expected a scalar.")
