"""An update from the reader's own code, with the params it was computed at."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.settings.attack import Attack
from experiments.settings.clients import Clients
from experiments.settings.run import Run
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim
from experiments.victims import own_loss
from experiments.victims.network import blocks, check_features, denormaliser, network
from experiments.victims.target import local, precise
from invertjax.auditing import Target
from invertjax.auditing.situations import Threat, shapes_of_batch
from invertjax.cli import arrays
from invertjax.cli.own_model import apart, in_a_line
from invertjax.defenses.protection import Parts
from invertjax.driver import Cache

Files = dict[str, dict[str, Any]]  # the arrays of a file, by flag and path


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
    assert saved.update and saved.params  # checked with the settings
    found = {
        "update": arrays.load(saved.update, f"--update={saved.update}"),
        "params": arrays.load(saved.params, f"--params={saved.params}"),
    }
    if victim.model is None:
        found = _floats(saved, found, run)
        return _with_loss(saved, victim, clients, attack.labels, found)
    return _with_model(saved, victim, clients, run, found, cache)


def num_classes(saved: SavedUpdate) -> int:
    """Returns K, by default that of CIFAR-10."""
    return saved.num_classes or 10


def _floats(saved: SavedUpdate, found: Files, run: Run) -> Files:
    """Returns the arrays of both files in the precision of the run."""
    cast = {
        flag: arrays.as_floats(held, run.dtype, f"--{flag}={getattr(saved, flag)}")
        for flag, held in found.items()
    }
    if not any(np.any(leaf) for leaf in cast["update"].values()):
        raise ValueError(f"--update={saved.update} holds only zeros.")
    return cast


def _with_model(
    saved: SavedUpdate,
    victim: Victim,
    clients: Clients,
    run: Run,
    found: Files,
    cache: Cache,
) -> Given:
    shape, classes = tuple(saved.image_shape), num_classes(saved)
    made = network(victim, clients.defense, shape, classes, cache=cache)
    like, buffers = made.init(jax.random.key(0))
    found, buffers = _apart(saved, found, buffers)
    found, buffers = _floats(saved, found, run), precise(buffers, run.dtype)
    try:
        params = arrays.as_tree(found["params"], like, f"--params={saved.params}")
        update = arrays.as_tree(found["update"], like, f"--update={saved.update}")
    except ValueError as error:
        sizes = ",".join(map(str, shape))
        raise ValueError(
            f"{error} That is what --model={victim.model} --image_shape={sizes} "
            f"--num_classes={classes} takes."
        ) from None
    train = victim.norm_mode != "eval"
    loss_fn, drawn = made.loss(buffers, train)
    target = Target(
        loss_fn,
        (clients.batch_size, *shape),
        made.parts(buffers, train),
        local(clients),
        clients.defense,
        from_input=denormaliser(made.net, shape),
        blocks=blocks(made, victim),
        drawn=drawn,
    )
    return Given(target, params, update)


def _apart(saved: SavedUpdate, found: Files, buffers: Any) -> tuple[Files, Any]:
    """Returns the files without buffers, and the buffers; see `own_model.apart`."""
    update, _ = apart(found["update"], buffers, f"--update={saved.update}")
    params, buffers = apart(found["params"], buffers, f"--params={saved.params}")
    return {"update": update, "params": params}, buffers


def _with_loss(
    saved: SavedUpdate, victim: Victim, clients: Clients, labels: str, found: Files
) -> Given:
    assert victim.loss is not None  # checked with the settings
    check_features(victim.named, False, clients.defense)
    target = Target(
        own_loss.imported(victim.loss),
        (clients.batch_size, *saved.image_shape),
        Parts(num_classes(saved)),
        local(clients),
        clients.defense,
    )
    params = _first_form(saved, victim, target, labels, found["params"])
    update = arrays.as_tree(found["update"], params, f"--update={saved.update}")
    return Given(target, params, update)


def _first_form(
    saved: SavedUpdate, victim: Victim, target: Target, labels: str, found: dict
) -> Any:
    """Returns the tree of which the loss takes the arrays; see `arrays.forms`."""
    batch = shapes_of_batch(target, Threat(labels))
    errors = []
    for params in arrays.forms(found):
        try:
            own_loss.tried(target.loss_fn, params, batch)
            return params
        except Exception as error:  # the reader's own code may raise anything
            errors.append(error)
    raise ValueError(
        f"--loss={victim.loss} fails on images of shape {batch['image'].shape}, labels "
        f"of shape {batch['label'].shape} and the arrays of --params={saved.params}: "
        f"{in_a_line(errors[0])} ({own_loss.FORMS}.)"
    )
