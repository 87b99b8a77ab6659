"""What an attack starts from: a target, a threat, and arrays with a row an update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import distances
from invertjax.base import (
    Batch,
    Block,
    Candidate,
    Client,
    Distance,
    Loss,
    Params,
    Share,
    Softened,
    Update,
)
from invertjax.defenses import protection
from invertjax.defenses.protection import Drawn, Parts, Protection

LABELS = ("known", "inferred", "joint")


class Local(NamedTuple):
    """Local training, as the federation has agreed on it (FedAvg).

    steps: SGD steps in all. batch_size: images in a mini-batch.
    learning_rate: `[]`, may be traced. shuffle: whether every epoch has a new order,
    which the attacker does not know.
    """

    steps: int
    batch_size: int
    learning_rate: Any = 0.05
    shuffle: bool = False


class Target(NamedTuple):
    """A network and the client that trains it; all of it but arrays is static.

    loss_fn: `(params, batch) -> []`.
    shape: `(B, H, W, C)` of the images behind one update.
    parts: of the network, for defenses and labels.
    local: the client's training; None where it shares the gradient itself.
    protections: what the client does to protect its data, in order.
    client: `(params, batch, key) -> update` of the reader's own, in place of the
      gradient of `loss_fn`; None: that gradient.
    from_input: `[H*W*C] -> [H*W*C]`, undoes a normalisation before the first layer.
    blocks: `(params, features) -> features` each, from images to logits, where the loss
      is their cross-entropy; (): as the loss is cut, if it can be.
    drawn: what the network draws; None if nothing.
    members: weights of the clients whose mean is all that the server sees, as under
      secure aggregation; None: it sees the update of one client. The batch is then
      that of all members, one after the other, with as many images each.
    """

    loss_fn: Loss
    shape: tuple[int, ...]
    parts: Parts
    local: Local | None = None
    protections: tuple[Protection, ...] = ()
    client: Client | None = None
    from_input: Callable[[Any], Any] = lambda flat: flat
    blocks: tuple[Block, ...] = ()
    drawn: Drawn | None = None
    members: tuple[float, ...] | None = None

    @property
    def training(self) -> protection.Training:
        """How often, and from how many images, the client computes gradients."""
        if self.local is None:
            return protection.Training(self.shape[0])
        local = self.local
        return protection.Training(local.batch_size, local.steps, local.learning_rate)


class Threat(NamedTuple):
    """What the attacker is told.

    labels: one of `LABELS`: he has them, reads them off the update, or optimises them
      with the images.
    protection_known: whether he knows what the client does to protect its data.
    local_known: whether he simulates local steps, or takes the update for one gradient.
    """

    labels: str = "known"
    protection_known: bool = False
    local_known: bool = True


class Situation(NamedTuple):
    """What attacks on several updates start from.

    target: as the attacker takes it, without its numbers: they are in the trials.
    threat: what he was told.
    shared: pytree that all updates share: {"params"}, or {} where each has its own.
    trials: pytree of `[N, ...]`: "update", "rms" of the undefended update's
      coordinates, "numbers"; where they apply "params", "label", "key" (what a client
      has drawn), "smoothness" (of public images).
    truth: `{"image": [N, B, H, W, C], "label": [N, B]}`; None where it is not known.
    """

    target: Target
    threat: Threat
    shared: Any
    trials: dict[str, Any]
    truth: Any = None

    @property
    def updates(self) -> int:
        """The number N of updates."""
        return len(self.trials["rms"])


class Trial(NamedTuple):
    """What an attack on one update starts from, inside a compiled program.

    target: as the attacker takes it, with its numbers. share: its client at the params
    and a key. softened: `(batch, sharpness) -> update`, the same with softplus for
    relu, where the attack asks for it and the loss has relus. observed: the update.
    params: at which it was computed. smoothness: of public images, if there are any.
    near: whether the candidate starts near the truth, as another exact attack left it.
    """

    target: Target
    threat: Threat
    share: Share
    softened: Softened | None
    observed: Update
    candidate: Candidate
    params: Params
    smoothness: Any = None
    near: bool = False

    def adapted(self, distance: Distance) -> Distance:
        """Returns the distance, adapted to the defenses that the attacker knows of."""
        return adapted(self.target, self.threat, distance)


def adapted(target: Target, threat: Threat, distance: Distance) -> Distance:
    """Returns a distance, adapted to the defenses that the attacker knows of."""
    if not threat.protection_known:
        return distance
    if target.drawn is not None and target.drawn.behind:
        distance = distances.without(distance, *target.drawn.behind)
    return protection.adapted(distance, target.protections)


def as_attacked(target: Target, threat: Threat) -> Target:
    """Returns the target as the attacker sees it, without what he does not know of."""
    if not threat.protection_known:
        kept = protection.of_network(target.protections)
        target = target._replace(protections=kept)
    return target if threat.local_known else target._replace(local=None)


def numbers(target: Target) -> dict[str, Any]:
    """Returns the numbers of a target, which are arrays in compiled programs."""
    rate = None if target.local is None else as_array(target.local.learning_rate)
    values = tuple(
        as_array(p.value) if p.is_number else None for p in target.protections
    )
    return {"learning_rate": rate, "protections": values}


def without_numbers(target: Target) -> Target:
    """Returns a target that is equal for all that share their compiled programs."""
    local = target.local and target.local._replace(learning_rate=None)
    protections = tuple(
        p._replace(value=None if p.is_number else p.value, label=None)
        for p in target.protections
    )
    return target._replace(local=local, protections=protections)


def with_numbers(target: Target, numbers: dict[str, Any]) -> Target:
    """Returns the target with its numbers, which may be traced, put in again."""
    local = target.local
    if local is not None:
        local = local._replace(learning_rate=numbers["learning_rate"])
    protections = tuple(
        p if value is None else p._replace(value=value)
        for p, value in zip(target.protections, numbers["protections"], strict=True)
    )
    return target._replace(local=local, protections=protections)


def as_array(value: Any) -> np.ndarray:
    """Returns a number, or a tuple of numbers, in the precision of the run."""
    return np.asarray(value, jnp.result_type(float))


def shapes_of_batch(target: Target, threat: Threat) -> Batch:
    """Returns the shapes of a batch, with labels as the attack gives them."""
    size, dtype = target.shape[0], jnp.result_type(float)
    label = jax.ShapeDtypeStruct((size,), jnp.int32)
    if threat.labels == "joint":  # probabilities are optimised
        label = jax.ShapeDtypeStruct((size, target.parts.num_classes), dtype)
    return {"image": jax.ShapeDtypeStruct(target.shape, dtype), "label": label}
