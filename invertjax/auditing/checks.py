"""What does not go together in an audit is refused before anything is compiled.

Every error is a one-line `ValueError` that names the argument, its value and what would
be right.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import leaves, updates
from invertjax.auditing import clients
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.situations import Target, Threat, shapes_of_batch
from invertjax.base import Batch, Params, Update

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown


def check_data(
    update: Update | None,
    batches: Batch | None,
    shape: tuple[int, ...] | None,
    public: Batch | None,
) -> None:
    """Refuses data that is missing, or whose shapes do not fit one another."""
    if (update is None) == (batches is None):
        raise ValueError("Expected exactly one of update=... and batches=...")
    if batches is None and shape is None:
        raise ValueError("Expected shape=(B, H, W, C) beside update=...")
    if batches is not None:
        images, labels = np.shape(batches["image"]), np.shape(batches["label"])
        if len(images) != 5 or labels != images[:2] or min(images) < 1:
            raise ValueError(
                f"Expected batches of images {images} and labels {labels} to have "
                "shapes (N, B, H, W, C) and (N, B), all >= 1."
            )
        shape = images[1:]
        check_images("batches", batches)
    if public is not None:
        check_images("public", public)
    found = () if public is None else np.shape(public["image"])
    if public is not None and found[1:] != tuple(shape or ())[1:]:
        raise ValueError(
            f"Expected public images of shape {found} to be (P, H, W, C) with the "
            f"sides of {shape}."
        )


def check_images(named: str, batch: Batch) -> None:
    """Refuses images that are no floats in [0, 1], as an audit's attacks guess them.

    Args:
      named: what the error calls the batch.
      batch: of concrete arrays.
    """
    images = np.asarray(batch["image"])
    if not images.size:
        return
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"Expected {named}['image'] of type {images.dtype} to be floats in [0, 1]: "
            "divide images of 0 to 255 by 255."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # nor NaN
        raise ValueError(
            f"Expected {named}['image'] in [0, 1], got values from {low:.3g} to "
            f"{high:.3g}: put the normalisation into the loss, or give an attack of "
            "your own candidates.box(candidates.pixels(shape, labels), low, high)."
        )


def check_loss(target: Target, params: Params, threat: Threat) -> None:
    """Refuses params that are not finite, and a loss that no attack can run backwards:
    one that returns more than a scalar, or reads more than images and labels."""
    for leaf in jax.tree.leaves(leaves.floats(params)):
        if not np.all(np.isfinite(leaf)):  # a maximum with zero would hide it
            raise ValueError("Expected params that are all finite numbers.")
    batch = clients.with_drawn(target, shapes_of_batch(target, threat))
    client, key = clients.gradient(target), _jax.eval_shape(lambda: jax.random.key(0))

    def share(batch: Batch) -> Update:
        return _jax.eval_shape(client, params, batch, key)

    updates.shapes(share, batch)


def check_options(
    row: Attacker,
    warm: Attacker | None,
    restarts: int,
    steps: int | None,
    numbers: Mapping[str, Any] | None,
) -> None:
    """Refuses options that are out of range, or that would silently do nothing."""
    if restarts < 1:
        raise ValueError(f"Expected restarts={restarts} >= 1.")
    if steps is not None and steps < 1:
        raise ValueError(f"Expected steps={steps} >= 1.")
    if row.closed_form and (steps is not None or warm is not None):
        given = f"steps={steps}" if warm is None else f"warm_start={warm.name!r}"
        raise ValueError(
            f"{given} does not apply to attack={row.name!r}, a closed form: expected "
            "None."
        )
    for name in numbers or {}:
        if name not in row.numbers:
            raise ValueError(
                f"numbers={dict(numbers or {})} has {name!r}: attack={row.name!r} "
                f"can be told {', '.join(row.numbers) or 'no number'}."
            )


def check(
    row: Attacker,
    warm: Attacker | None,
    target: Target,
    params: Params,
    threat: Threat,
    public: Batch | None,
) -> None:
    """Refuses what does not go together, before anything is compiled.

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    size, *_ = target.shape or (0,)
    if len(target.shape) != 4 or min(target.shape) < 1:
        raise ValueError(f"Expected shape={target.shape} to be (B, H, W, C), all >= 1.")
    if row.images is not None and size > row.images:
        raise ValueError(
            f"attack={row.name!r} reads {row.images} image: expected batches of that, "
            f"not of {size}."
        )
    for one in filter(None, (row, warm)):
        _check_row(one, target, params, threat)
    if row.public and public is None:
        raise ValueError(
            f"attack={row.name!r} needs public images: expected public=..."
        )


def needs_order(target: Target, threat: Threat) -> str | None:
    """Returns why labels that were read off an update, which come as counts without an
    order, do not do here; None where they do, or are not read off.

    The attacker would simulate a client whose images have other labels than they had.
    """
    if threat.labels != "inferred" or target.shape[0] == 1:
        return None
    members = target.members or (1.0,)
    size = target.shape[0] // len(members)
    if len(set(members)) > 1:
        return (
            f"counts of labels are read off a mean of equal weights, not of {members} "
            "(clients with unequal numbers of images)"
        )
    local = target.local if threat.local_known else None
    if local is not None and len(members) > 1:
        return "they do not say which client of the mean has which label (local_steps)"
    if local is not None and local.batch_size < size:
        return (
            f"they do not say which mini-batch (local_batch) of {local.batch_size} has "
            f"which of the {size} labels"
        )
    told = [one for one in target.protections if one.told and threat.protection_known]
    if told:
        return f"they do not say on which image {told[0]} did what the attacker is told"
    return None


def _check_row(row: Attacker, target: Target, params: Params, threat: Threat) -> None:
    named = f"attack={row.name!r}"
    if threat.labels not in row.labels:
        raise ValueError(
            f"labels={threat.labels!r} does not fit {named}: expected "
            f"{' or '.join(row.labels)}."
        )
    if row.one_gradient and target.local is not None:
        raise ValueError(
            f"local={target.local} does not fit {named}, which solves the gradient of "
            "every layer in turn: expected None."
        )
    unordered = needs_order(target, threat)
    if unordered:
        raise ValueError(
            f"labels='inferred' does not fit here: {unordered}; expected 'known', "
            "labels [B], or 'joint'."
        )
    reason = row.refuses(target, params, threat) if row.refuses else None
    if reason:
        raise ValueError(f"{named} does not fit here: {reason.rstrip('.')}.")
